//! Data that trained adapters are looked at with.

use crate::model_args::Opened;
use crate::{Failure, out};
use mixlora::data::{DataFiles, Dataset, Encoder, Sample};
use mixlora::train::{TextOptions, give_conditions, look_at_pictures_with};
use std::path::{Path, PathBuf};

/// The samples of a file.
pub struct Measured {
    pub path: PathBuf,
    pub samples: Vec<Sample>,
    files: DataFiles,
    options: TextOptions,
}

/// What adapters ask of samples.
pub struct Asked {
    /// Rows in front of each sample.
    pub rows_in_front: usize,
    /// Whether one chooses by a condition.
    pub conditions: bool,
}

impl Measured {
    /// The file that is read: see [`read`](Measured::read).
    pub fn path(data: &Path, split: Option<&str>) -> Result<PathBuf, Failure> {
        of_split(&DataFiles::find(data)?, data, split)
    }

    /// Reads a file, or that of a folder which is named, else its test file, else its valid file, else its train file.
    pub fn read(data: &Path, split: Option<&str>, options: TextOptions) -> Result<Self, Failure> {
        let files = DataFiles::find(data)?;
        let path = of_split(&files, data, split)?;
        let samples = options.read(&path)?;
        Ok(Measured { path, samples, files, options })
    }

    /// The samples as examples for a model, with what its tower sees of their pictures, and what made them so. What was left
    /// out or cut is said on stderr.
    pub fn encode(&self, opened: &Opened, asked: &Asked) -> Result<(Encoder, Dataset), Failure> {
        // Samples longer than the model's context are cut at their start.
        let room = opened.model.config().max_positions() - asked.rows_in_front;
        let max_length = self.options.max_length.min(room);
        let options = TextOptions { max_length, ..self.options.clone() };
        let encoder = options.encoder(&opened.text)?.with_pictures(opened.picture_tokens()?)?;
        let mut data = encoder.dataset(&self.path, &self.samples)?;
        let notes = self.files.note().into_iter().chain(data.counts.note("samples", max_length));
        notes.for_each(|text| out::note(&format!("note: {text}")));
        data.check_rows(&self.path, opened.model.config().vocab_size)?;
        if asked.conditions {
            give_conditions(&mut data, &opened.model, &opened.text.tokenizer)?;
        }
        if data.examples.iter().any(|example| !example.pictures.is_empty()) {
            let looked = look_at_pictures_with([&mut data], &*opened.sight()?, &options)?;
            looked.notes.iter().for_each(|text| out::note(&format!("note: {text}")));
        }
        Ok((encoder, data))
    }
}

fn of_split(files: &DataFiles, data: &Path, split: Option<&str>) -> Result<PathBuf, Failure> {
    let path = match split {
        Some("train") => files.train.clone(),
        Some("valid") => files.valid.clone(),
        Some(_) => files.test.clone(),
        None => files.test.clone().or(files.valid.clone()).or(files.train.clone()),
    };
    let what = || format!("has no {}.jsonl", split.unwrap_or("test"));
    path.ok_or_else(|| mixlora::Error::File { path: data.into(), what: what() }.into())
}
