//! `metrics.jsonl`: one object a line, appended and flushed as it happens, so that a crash loses nothing.

use crate::device::unix_time;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// The longest line of a log that is read, in bytes.
const LONGEST: u64 = 1 << 24;

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
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Steps and values.
pub type Points = Vec<(f64, f64)>;

/// What a log says of each step. A step that a resumed run repeated counts once, as it was last, and what lay behind the
/// step from which it went on does not count.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metrics {
    /// The method and the model, where the log names them.
    pub title: Option<String>,
    pub losses: Points,
    pub validation_losses: Points,
    pub learning_rates: Points,
    pub gradient_norms: Points,
}

impl Metrics {
    /// Reads a log. A line that a crash cut short is passed over.
    ///
    /// # Errors
    /// The file cannot be read, a line is no JSON, or no line of a step or a validation has a finite loss.
    pub fn read(path: &Path) -> Result<Self> {
        let fail = |error: std::io::Error| Error::file(path, format!("cannot be read: {error}"));
        let mut reader = BufReader::new(File::open(path).map_err(fail)?);
        let mut read = ByStep::default();
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if reader.by_ref().take(LONGEST).read_until(b'\n', &mut line).map_err(fail)? == 0 {
                break;
            }
            if line.len() as u64 == LONGEST {
                return Err(Error::file(path, format!("line {number} is longer than {LONGEST} bytes")));
            }
            match serde_json::from_slice::<Value>(line.trim_ascii_end()) {
                Ok(line) => read.take(&line),
                Err(error) if error.is_eof() => {}
                Err(error) => {
                    let what = error.to_string();
                    let what = what.split(" at line ").next().unwrap_or_default();
                    let place = format!("line {number} is no JSON, at column {}", error.column());
                    return Err(Error::file(path, format!("{place}: {what}")));
                }
            }
        }
        read.done().ok_or_else(|| {
            let what = "holds no line of a step or a validation with a finite loss; is it the metrics.jsonl of a run?";
            Error::file(path, what)
        })
    }
}

/// A log as far as it is read: values by step.
#[derive(Default)]
struct ByStep {
    title: Option<String>,
    steps: BTreeMap<u64, [Option<f64>; 3]>,
    validations: BTreeMap<u64, f64>,
}

impl ByStep {
    fn take(&mut self, line: &Value) {
        let number = |name: &str| line[name].as_f64();
        let kind = line["t"].as_str();
        if kind == Some("run") {
            let config = &line["config"];
            let model = config["model"].as_str().and_then(|model| Path::new(model).file_name());
            if let (Some(method), Some(model)) = (config["method"].as_str(), model) {
                self.title = Some(format!("{method} on {}", model.to_string_lossy()));
            }
        }
        let Some(step) = line["step"].as_u64() else { return };
        match kind {
            Some("step") => {
                self.steps.insert(step, ["loss", "lr", "grad_norm"].map(number));
            }
            Some("eval") => {
                number("loss").map(|loss| self.validations.insert(step, loss));
            }
            Some("resume") => {
                self.steps.split_off(&(step + 1));
                self.validations.split_off(&(step + 1));
            }
            _ => {}
        }
    }

    fn done(self) -> Option<Metrics> {
        let of_steps = |which: usize| -> Points {
            let points = self.steps.iter().map(|(&step, values)| Some((step as f64, values[which]?)));
            points.flatten().collect()
        };
        let [losses, learning_rates, gradient_norms] = [0, 1, 2].map(of_steps);
        let validation_losses: Points =
            self.validations.iter().map(|(&step, &loss)| (step as f64, loss)).collect();
        let has_any = !losses.is_empty() || !validation_losses.is_empty();
        let title = self.title;
        has_any.then_some(Metrics { title, losses, validation_losses, learning_rates, gradient_norms })
    }
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
        log.write(&json!({"t": "step", "step": 1, "loss": 2.5, "lr": 0.1, "grad_norm": 4.0})).unwrap();
        log.write(&json!({"t": "step", "step": 2, "loss": null, "lr": 0.2})).unwrap();
        log.write(&json!({"t": "eval", "step": 1, "loss": 2.0})).unwrap();
        let read = Metrics::read(&path).unwrap();
        assert_eq!(read.losses, [(1.0, 2.5)]);
        assert_eq!(read.validation_losses, [(1.0, 2.0)]);
        assert_eq!(read.learning_rates, [(1.0, 0.1), (2.0, 0.2)]);
        assert_eq!(read.gradient_norms, [(1.0, 4.0)]);
        let text = std::fs::read_to_string(&path).unwrap();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert!(last["time"].as_f64().unwrap() > 1.7e9, "{last}");
    }

    /// A run that was killed behind its last checkpoint does those steps again, and may end before it is as far.
    #[test]
    fn what_lies_behind_a_resumed_step_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path).unwrap();
        log.write(&json!({"t": "run", "config": {"method": "lora", "model": "/models/tiny.gguf"}})).unwrap();
        for step in 1..=5 {
            log.write(&json!({"t": "step", "step": step, "loss": step})).unwrap();
        }
        log.write(&json!({"t": "eval", "step": 5, "loss": 1.0})).unwrap();
        log.write(&json!({"t": "resume", "step": 2})).unwrap();
        log.write(&json!({"t": "step", "step": 3, "loss": 7.0})).unwrap();
        let read = Metrics::read(&path).unwrap();
        assert_eq!(read.losses, [(1.0, 1.0), (2.0, 2.0), (3.0, 7.0)]);
        assert_eq!(read.validation_losses, []);
        assert_eq!(read.title.as_deref(), Some("lora on tiny.gguf"));
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        for (text, expected) in [
            ("{\"t\": \"step\", \"step\": 1, \"loss\": 1}\nhello\n", "line 2 is no JSON"),
            ("", "holds no line of a step"),
            ("[1]\n\"step\"\n", "holds no line of a step"),
            ("{\"t\": \"step\", \"step\": 1, \"loss\": null}\n", "with a finite loss"),
            ("{\"t\": \"step\", \"step\": 1, \"loss\": 1e999}\n", "line 1 is no JSON"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Metrics::read(&path).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("metrics.jsonl"), "{text}: {error}");
        }
        let error = Metrics::read(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("cannot be read"), "{error}");
        std::fs::write(&path, vec![b' '; LONGEST as usize + 1]).unwrap();
        let error = Metrics::read(&path).unwrap_err().to_string();
        assert!(error.contains("line 1 is longer"), "{error}");
    }
}
