//! The samples of a run: those that train and those that validate.

use super::RunConfig;
use crate::data::{DataFiles, Sample, read_samples_with, recognised, set_apart};
use crate::{Error, Result};
use std::path::PathBuf;

/// The samples of a run.
pub(super) struct Samples {
    pub train: Vec<Sample>,
    pub valid: Option<Vec<Sample>>,
    /// The files that they are of: that of training, and that of validation where it is another.
    pub paths: Vec<PathBuf>,
    pub notes: Vec<String>,
}

impl Samples {
    /// Reads the files of a data set; where it has none for validation, a share of its samples is set apart if that is asked
    /// for.
    pub fn read(config: &RunConfig, files: &DataFiles) -> Result<Self> {
        let Some(train_file) = &files.train else {
            return Err(Error::file(&config.data, "has no train.jsonl"));
        };
        let paths: Vec<PathBuf> =
            [Some(train_file), files.valid.as_ref()].into_iter().flatten().cloned().collect();
        let options = config.text.reading()?;
        let mut notes = Vec::new();
        let mut read = |path: &PathBuf| -> Result<_> {
            let samples = read_samples_with(path, &options)?;
            notes.extend(recognised(path, &options, &samples)?);
            Ok(of_task(samples, config.task.as_deref()))
        };
        let train = read(train_file)?;
        let valid = files.valid.as_ref().map(&mut read).transpose()?;
        let Some(share) = config.train.valid_share else { return Ok(Samples { train, valid, paths, notes }) };
        if let Some(file) = &files.valid {
            let what = format!("the data has samples to validate with, in {}: leave it out", file.display());
            return Err(Error::refused("train.valid_share", what));
        }
        let (train, valid) = set_apart(train, share);
        if train.is_empty() || valid.is_empty() {
            let what = "has a single question: nothing can be set apart of it for validation";
            return Err(Error::file(train_file, what));
        }
        notes.push(format!("of the samples {} train and {} validate", train.len(), valid.len()));
        Ok(Samples { train, valid: Some(valid), paths, notes })
    }
}

/// What a stage is measured on, with its file: its samples for validation, or all where it has none. Those for training are
/// read only where these are among them.
pub(super) fn measured(config: &RunConfig, files: &DataFiles) -> Result<(PathBuf, Vec<Sample>)> {
    if let Some(path) = &files.valid {
        let samples = config.text.read(path)?;
        return Ok((path.clone(), of_task(samples, config.task.as_deref())));
    }
    let Samples { train, valid, mut paths, .. } = Samples::read(config, files)?;
    Ok((paths.remove(0), valid.unwrap_or(train)))
}

/// Samples with a task where they name none.
fn of_task(mut samples: Vec<Sample>, task: Option<&str>) -> Vec<Sample> {
    for sample in samples.iter_mut().filter(|sample| sample.task.is_none()) {
        sample.task = task.map(String::from);
    }
    samples
}
