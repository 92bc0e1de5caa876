//! The folder of a run: one process at a time, checkpoints that are whole or absent, names for the last and the best.
//!
//! ```text
//! run/run.json         options, what it was started with
//!     metrics.jsonl    one object a line
//!     loss.svg
//!     step-000120/     adapter, optimizer.safetensors, state.json, MANIFEST.json
//!     last, best       the name of a step folder
//!     LOCK             held while a process trains here
//! ```

use crate::adapter::{BEST, LAST, STAGES, STEP_PREFIX, pointed};
use crate::atomic;
use crate::io::folder;
use crate::{Error, Result};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

const LOCK: &str = "LOCK";
const RUN: &str = "run.json";

/// A run's folder, locked for this process.
#[derive(Debug)]
pub struct RunFolder {
    dir: PathBuf,
    /// The lock goes with the process, however it ends.
    _lock: File,
}

impl RunFolder {
    /// Refuses a place that cannot become a run's folder. Nothing is created.
    ///
    /// # Errors
    /// It is a file, or holds a run.
    pub fn check_free(dir: &Path) -> Result<()> {
        if dir.exists() && !dir.is_dir() {
            return Err(Error::file(dir, "is a file; a run needs a folder"));
        }
        if Self::is_at(dir) || dir.join(STAGES).exists() {
            Err(Error::file(dir, "already holds a run: resume it, or choose another folder"))
        } else {
            Ok(())
        }
    }

    /// Whether a folder holds a run.
    pub fn is_at(dir: &Path) -> bool {
        dir.join(RUN).exists()
    }

    /// Makes the folder of a new run and puts `run.json` into it.
    ///
    /// # Errors
    /// The place is not free, cannot be written, or is used by another process.
    pub fn create(dir: &Path, run: &str) -> Result<Self> {
        Self::check_free(dir)?;
        fs::create_dir_all(dir).map_err(|error| Error::file(dir, format!("cannot be created: {error}")))?;
        let folder = Self::locked(dir)?;
        // Another process may have been first.
        Self::check_free(dir)?;
        folder.write_run(run)?;
        Ok(folder)
    }

    /// Opens the folder of an earlier run.
    ///
    /// # Errors
    /// There is none, or another process trains there.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.join(RUN).is_file() {
            return Err(Error::file(dir, format!("holds no run: there is no {RUN}")));
        }
        Self::locked(dir)
    }

    fn locked(dir: &Path) -> Result<Self> {
        let path = dir.join(LOCK);
        let fail = |e: std::io::Error| Error::file(&path, format!("cannot be written: {e}"));
        let opened = File::options().create(true).read(true).append(true).open(&path);
        let mut lock = opened.map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let known = lock.read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
                let who = if known { format!("process {}", pid.trim()) } else { "another process".into() };
                return Err(Error::file(dir, format!("is in use: {who} trains there")));
            }
            // Some network file systems cannot lock: one process is then a matter of care.
            Err(TryLockError::Error(_)) => {}
        }
        let pid = std::process::id().to_string();
        lock.set_len(0).and_then(|()| lock.write_all(pid.as_bytes())).map_err(fail)?;
        Ok(RunFolder { dir: dir.into(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }
    /// The text of `run.json`.
    pub fn read_run(&self) -> Result<String> {
        let path = self.dir.join(RUN);
        fs::read_to_string(&path).map_err(|error| Error::file(path, format!("cannot be read: {error}")))
    }
    /// Replaces `run.json`.
    pub fn write_run(&self, text: &str) -> Result<()> {
        atomic::write(&self.dir.join(RUN), text.as_bytes())
    }

    fn step_dir(&self, step: usize) -> PathBuf {
        self.dir.join(format!("{STEP_PREFIX}{step:06}"))
    }

    /// Writes a checkpoint, makes it the last one and, if it is, the best one; then deletes those beyond the `keep`
    /// newest. The best is kept.
    ///
    /// # Errors
    /// The disk is full or cannot be written: earlier checkpoints are intact.
    pub fn save(&self, step: usize, files: &[(String, Vec<u8>)], best: bool, keep: usize) -> Result<PathBuf> {
        let dir = self.step_dir(step);
        folder::write(&dir, files)?;
        let name = format!("{STEP_PREFIX}{step:06}\n");
        // The last one is where a killed run goes on: by then it must be known that it is the best.
        if best {
            atomic::write(&self.dir.join(BEST), name.as_bytes())?;
        }
        atomic::write(&self.dir.join(LAST), name.as_bytes())?;
        self.prune(keep);
        Ok(dir)
    }

    /// Deletes the checkpoints beyond the `keep` newest, but for the last and the best. What cannot be deleted only
    /// takes space.
    pub fn prune(&self, keep: usize) {
        let best = pointed(&self.dir.join(BEST)).ok();
        let last = pointed(&self.dir.join(LAST)).ok();
        let mut all = folder::numbered(&self.dir, STEP_PREFIX);
        all.truncate(all.len().saturating_sub(keep));
        for (_, dir) in all.iter().filter(|(_, d)| Some(d) != best.as_ref() && Some(d) != last.as_ref()) {
            let _ = fs::remove_dir_all(dir);
        }
    }

    /// The newest checkpoint whose files are all as they were written: the one that `last` names, or else the one
    /// before. Also says what was passed over, and why. None where no checkpoint was ever complete.
    ///
    /// # Errors
    /// All are damaged.
    pub fn latest(&self) -> Result<Option<(PathBuf, Vec<String>)>> {
        self.put_back();
        let mut tried: Vec<PathBuf> = pointed(&self.dir.join(LAST)).into_iter().collect();
        tried.extend(folder::numbered(&self.dir, STEP_PREFIX).into_iter().rev().map(|(_, d)| d));
        let mut passed_over = Vec::new();
        for (i, dir) in tried.iter().enumerate().filter(|(i, d)| !tried[..*i].contains(d)) {
            match folder::verify(dir) {
                Ok(()) => {
                    if i > 0 {
                        passed_over.push(format!("going on from {}", dir.display()));
                    }
                    return Ok(Some((dir.clone(), passed_over)));
                }
                Err(e) => passed_over.push(format!("checkpoint passed over: {e}")),
            }
        }
        if passed_over.is_empty() {
            return Ok(None);
        }
        let mut what = "holds no checkpoint to go on from".to_string();
        passed_over.iter().for_each(|p| what += &format!("; {p}"));
        Err(Error::file(&self.dir, what))
    }

    /// Gives checkpoints back their names that a killed process was about to replace.
    fn put_back(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())) {
            let left = entry.extension().is_some_and(|e| e == "tmp" || e == "old");
            let step = |name: &str| name.starts_with(STEP_PREFIX);
            if left && entry.file_stem().and_then(|n| n.to_str()).is_some_and(step) {
                folder::put_back(&entry.with_extension(""));
            }
        }
    }

    /// Removes what a killed process left half-written.
    pub fn clean(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())) {
            let name = entry.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
            // Being in the way of nothing, what cannot be removed may stay.
            if name.starts_with(STEP_PREFIX) && (name.ends_with(".tmp") || name.ends_with(".old")) {
                let _ = fs::remove_dir_all(entry);
            } else if name.starts_with('.') && name.ends_with(".tmp") {
                let _ = fs::remove_file(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(text: &str) -> Vec<(String, Vec<u8>)> {
        vec![("state.json".into(), text.into())]
    }

    #[test]
    fn keeps_the_newest_and_the_best() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("run");
        let run = RunFolder::create(&dir, "{}").unwrap();
        for step in [10, 20, 30, 40] {
            run.save(step, &files("x"), step == 10, 2).unwrap();
        }
        let steps: Vec<u64> = folder::numbered(&dir, STEP_PREFIX).iter().map(|(n, _)| *n).collect();
        assert_eq!(steps, [10, 30, 40]);
        assert_eq!(run.latest().unwrap(), Some((dir.join("step-000040"), vec![])));
        assert_eq!(pointed(&dir.join(BEST)).unwrap(), dir.join("step-000010"));
        // e.4 row 52: a flipped bit.
        fs::write(dir.join("step-000040/state.json"), "y").unwrap();
        let (latest, passed_over) = run.latest().unwrap().unwrap();
        assert_eq!(latest, dir.join("step-000030"));
        assert!(passed_over[0].contains("is damaged") && passed_over[1].contains("step-000030"));
    }

    // e.4 row 54.
    #[test]
    fn one_process_at_a_time() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("run");
        let run = RunFolder::create(&dir, "{}").unwrap();
        let e = RunFolder::open(&dir).unwrap_err().to_string();
        assert!(e.contains(&format!("process {}", std::process::id())), "{e}");
        drop(run);
        RunFolder::open(&dir).unwrap();
        assert!(RunFolder::create(&dir, "{}").unwrap_err().to_string().contains("already holds a run"));
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(RunFolder::create(&file, "{}").unwrap_err().to_string().contains("is a file"));
        assert!(RunFolder::open(place.path()).unwrap_err().to_string().contains("holds no run"));
    }
}
