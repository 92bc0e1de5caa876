//! `metrics.jsonl`: one object a line, appended and flushed as it happens, so that a crash loses nothing.

use super::curve::{self, Line};
use crate::device::unix_time;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The log of a run.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens a log to append to; it is created when it is not there.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |e: std::io::Error| Error::file(path, format!("cannot be written: {e}"));
        let mut file = File::options().create(true).append(true).read(true).open(path).map_err(fail)?;
        // A line that a crash cut short must not swallow the next one.
        if !ends_with_newline(path).map_err(fail)? {
            file.write_all(b"\n").map_err(fail)?;
        }
        Ok(MetricsLog { path: path.into(), file })
    }

    /// Appends a line, with the time in seconds since 1970-01-01 UTC.
    pub fn write(&mut self, line: &Value) -> Result<()> {
        let mut line = line.clone();
        if let Some(fields) = line.as_object_mut() {
            fields.insert("time".into(), (unix_time().as_millis() as f64 / 1e3).into());
        }
        let text = format!("{line}\n");
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.flush());
        written.map_err(|error| Error::file(&self.path, format!("cannot be written: {error}")))
    }
}

fn ends_with_newline(path: &Path) -> std::io::Result<bool> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Step and loss.
type Points = Vec<(f64, f64)>;

/// Losses of a log by step, and validation losses. A step that a resumed run repeated counts once, as it was last;
/// lines that are no JSON are passed over.
pub fn read_losses(path: &Path) -> Result<(Points, Points)> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::file(path, format!("cannot be read: {error}")))?;
    let mut steps = BTreeMap::new();
    let mut evals = BTreeMap::new();
    for line in text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()) {
        let into = match line["t"].as_str() {
            Some("step") => &mut steps,
            Some("eval") => &mut evals,
            _ => continue,
        };
        if let (Some(step), Some(loss)) = (line["step"].as_u64(), line["loss"].as_f64()) {
            into.insert(step, loss);
        }
    }
    if steps.is_empty() && evals.is_empty() {
        return Err(Error::file(path, "holds no lines of steps or validations; is it a metrics.jsonl?"));
    }
    let list = |m: BTreeMap<u64, f64>| m.into_iter().map(|(s, l)| (s as f64, l)).collect();
    Ok((list(steps), list(evals)))
}

/// The loss curve of a log as SVG.
pub fn loss_curve(path: &Path, title: &str) -> Result<String> {
    let (steps, evals) = read_losses(path)?;
    let lines = [
        Line { label: "training loss", colour: "#4477aa", points: &steps, ..Line::default() },
        Line { label: "validation loss", colour: "#cc6633", points: &evals, ..Line::default() },
    ];
    Ok(curve::svg(title, &lines))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_survive_a_cut_and_a_repeated_step_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        MetricsLog::open(&path).unwrap().write(&json!({"t": "step", "step": 1, "loss": 3.0})).unwrap();
        File::options().append(true).open(&path).unwrap().write_all(b"{\"t\": \"st").unwrap();
        let mut log = MetricsLog::open(&path).unwrap();
        log.write(&json!({"t": "step", "step": 1, "loss": 2.5})).unwrap();
        log.write(&json!({"t": "eval", "step": 1, "loss": 2.0})).unwrap();
        assert_eq!(read_losses(&path).unwrap(), (vec![(1.0, 2.5)], vec![(1.0, 2.0)]));
        let text = std::fs::read_to_string(&path).unwrap();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert!(last["time"].as_f64().unwrap() > 1.7e9, "{last}");
        assert!(loss_curve(&path, "x").unwrap().contains("validation loss"));
        std::fs::write(&path, "hello\n").unwrap();
        assert!(read_losses(&path).is_err());
    }
}
