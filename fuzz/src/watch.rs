//! The process that watches: it starts the one that tries inputs again when an input ended it, or stops it when an
//! input has no end.

use crate::progress::Progress;
use crate::targets::Target;
use crate::worker::MOST_FINDINGS;
use crate::{Result, Wanted, findings};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// An input that takes longer has no end.
const ENDLESS: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Tries inputs of a target; gives its counts and the time they took.
pub fn run(target: &Target, wanted: &Wanted) -> Result<(Progress, Duration)> {
    let scratch = tempfile::Builder::new().prefix("mixlora-fuzz-").tempdir_in(findings::scratch())?;
    let path = scratch.path().join("progress");
    let state = File::create_new(&path)?;
    Progress::default().write(&state)?;
    let state = File::open(&path)?;
    let started = Instant::now();
    loop {
        let ended = wait(&mut start(target, &wanted.left(started.elapsed()), &path)?, &state)?;
        let mut progress = Progress::read(&state)?;
        let Some(what) = ended else { return Ok((progress, started.elapsed())) };
        if progress.begun == 0 {
            return Err(format!("{}: {what} before the first input", target.name).into());
        }
        let case = (target.open)(scratch.path());
        let number = progress.begun - 1;
        let input = target.input(&target.mutator(&case), wanted.seed, number);
        findings::keep(target, wanted.seed, number, &input, &what)?;
        progress.findings += 1;
        progress.write(&File::options().write(true).open(&path)?)?;
        if progress.findings >= MOST_FINDINGS {
            return Ok((progress, started.elapsed()));
        }
    }
}

fn start(target: &Target, wanted: &Wanted, state: &Path) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--worker", target.name]).arg(state).args(wanted.arguments());
    Ok(command.spawn()?)
}

/// Waits for the end: what went wrong, if it was no good one.
fn wait(child: &mut Child, state: &File) -> Result<Option<String>> {
    let mut seen = 0;
    let mut since = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((!status.success()).then(|| ending(status)));
        }
        let begun = Progress::read(state)?.begun;
        if begun != seen {
            seen = begun;
            since = Instant::now();
        } else if since.elapsed() > ENDLESS {
            child.kill()?;
            child.wait()?;
            return Ok(Some(format!("no end after {} s", ENDLESS.as_secs())));
        }
        std::thread::sleep(POLL);
    }
}

fn ending(status: ExitStatus) -> String {
    format!("the process ended: {status}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_end_is_told() {
        let state = tempfile::tempfile().unwrap();
        Progress::default().write(&state).unwrap();
        let ended = |program: &str| wait(&mut Command::new(program).spawn().unwrap(), &state).unwrap();
        assert_eq!(ended("true"), None);
        assert_eq!(ended("false").unwrap(), "the process ended: exit status: 1");
    }
}
