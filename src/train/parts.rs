//! What a run is made of: a model and examples, read as its options say.

use super::RunConfig;
#[cfg(feature = "tokenizer")]
use super::TextOptions;
use crate::data::Dataset;
#[cfg(feature = "tokenizer")]
use crate::data::{DataFiles, EncodeOptions, Encoder, LossOn, Sample, read_samples};
#[cfg(feature = "tokenizer")]
use crate::io::folder::fingerprint;
use crate::model::Model;
#[cfg(feature = "tokenizer")]
use crate::model::ModelPlace;
#[cfg(feature = "tokenizer")]
use crate::text::{ChatTemplate, ModelText, Tokenizer};
use crate::{Error, Result};
#[cfg(feature = "tokenizer")]
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a run is made of besides its options.
pub struct Parts {
    pub model: Arc<Model>,
    pub train: Dataset,
    pub valid: Option<Dataset>,
    /// The token that fills batches up.
    pub pad: u32,
    /// What the base model and the data are, to recognise them when the run goes on.
    pub base: String,
    pub data: String,
}

#[cfg(feature = "tokenizer")]
impl TextOptions {
    /// The text side of a model, with the tokenizer and the template that the options name instead of its own.
    ///
    /// # Errors
    /// A file is missing or malformed, or there is neither a model nor a tokenizer.
    pub fn open(&self, model: Option<&Path>) -> Result<ModelText> {
        let own = model.map(ModelText::open).transpose()?;
        let mut text = match (&self.tokenizer, own) {
            (Some(file), own) => {
                ModelText::new(Tokenizer::from_file(file)?, own.and_then(|own| own.template))
            }
            (None, Some(own)) => own,
            (None, None) => return Err(Error::config("model", "a model or a tokenizer is needed")),
        };
        if let Some(name) = &self.template {
            text = ModelText::new(text.tokenizer, Some(named_template(name)?));
        }
        Ok(text)
    }

    /// What turns samples into examples.
    ///
    /// # Errors
    /// The length leaves no room for a trained token.
    pub fn encoder(&self, text: &ModelText) -> Result<Encoder> {
        let options = EncodeOptions {
            loss_on: if self.loss_on_all { LossOn::All } else { LossOn::Assistant },
            max_length: self.max_length,
            allow_untrained_eos: self.allow_untrained_eos,
            max_untrained: self.max_untrained,
        };
        Encoder::new(&text.tokenizer, text.template.as_ref(), options)
    }
}

#[cfg(feature = "tokenizer")]
fn named_template(name: &str) -> Result<ChatTemplate> {
    if let Some(template) = ChatTemplate::named(name) {
        return Ok(template);
    }
    let fail = |what: String| Error::file(name, what);
    let text = std::fs::read_to_string(name).map_err(|error| {
        fail(format!("is neither the built-in template chatml nor a file that can be read: {error}"))
    })?;
    ChatTemplate::new(&text).map_err(|error| fail(error.to_string()))
}

/// Training data in text and in tokens.
#[cfg(feature = "tokenizer")]
pub struct TrainingData {
    pub train: Dataset,
    pub valid: Option<Dataset>,
    /// Samples of the validation file, to be answered.
    pub valid_samples: Vec<Sample>,
    /// Tells the files apart from others.
    pub fingerprint: String,
    /// What of them is not read, left out or cut: for the user to know before the first step.
    pub notes: Vec<String>,
}

#[cfg(feature = "tokenizer")]
impl TrainingData {
    /// Reads train.jsonl and, if it is there, valid.jsonl of a folder; or one file.
    ///
    /// # Errors
    /// There is no training file, or lines cannot be used: all of them are listed, up to a limit.
    pub fn open(config: &RunConfig, text: &ModelText) -> Result<Self> {
        let encoder = config.text.encoder(text)?;
        let files = DataFiles::find(&config.data)?;
        let Some(train) = &files.train else {
            return Err(Error::file(&config.data, "has no train.jsonl"));
        };
        let paths: Vec<PathBuf> =
            [Some(train), files.valid.as_ref()].into_iter().flatten().cloned().collect();
        let valid_samples = files.valid.as_deref().map_or(Ok(Vec::new()), read_samples)?;
        let valid = files.valid.as_deref().map(|path| encoder.dataset(path, &valid_samples)).transpose()?;
        let train = encoder.dataset(train, &read_samples(train)?)?;
        let length = config.text.max_length;
        let of_valid = valid.as_ref().and_then(|v| v.counts.note("validation samples", length));
        let notes = [files.note(), train.counts.note("training samples", length), of_valid];
        let notes = notes.into_iter().flatten().collect();
        Ok(TrainingData { train, valid, valid_samples, fingerprint: fingerprint(&paths)?, notes })
    }

    /// With the model, what a run is made of.
    ///
    /// # Errors
    /// The vocabulary does not fit the model, or the model's files cannot be read.
    pub fn with(&self, config: &RunConfig, text: &ModelText, model: Arc<Model>) -> Result<Parts> {
        let rows = model.config().vocab_size;
        text.tokenizer.check_rows(rows)?;
        for data in [Some(&self.train), self.valid.as_ref()].into_iter().flatten() {
            data.check_rows(&config.data, rows)?;
        }
        Ok(Parts {
            pad: text.tokenizer.pad_within(rows),
            model,
            train: self.train.clone(),
            valid: self.valid.clone(),
            base: fingerprint(&model_files(&config.model)?)?,
            data: self.fingerprint.clone(),
        })
    }
}

/// The files that make a model: itself, or the configuration and weights of a directory.
#[cfg(feature = "tokenizer")]
fn model_files(path: &Path) -> Result<Vec<PathBuf>> {
    let dir = match ModelPlace::of(path)? {
        ModelPlace::Gguf(file) => return Ok(vec![file]),
        ModelPlace::Folder(dir) => dir,
    };
    let entries =
        std::fs::read_dir(&dir).map_err(|error| Error::file(&dir, format!("cannot be read: {error}")))?;
    let counts =
        |p: &PathBuf| p.ends_with("config.json") || p.extension().is_some_and(|e| e == "safetensors");
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(counts).collect();
    files.sort();
    Ok(files)
}

/// Refuses examples that leave an instance's router nothing to look at, by their lines.
pub(super) fn check_prompts(config: &RunConfig, data: &Dataset) -> Result<()> {
    if !config.method.options().instance().is_some_and(|i| i.pool.needs_prompt()) {
        return Ok(());
    }
    let empty: Vec<String> = data
        .examples
        .iter()
        .zip(&data.lines)
        .filter(|(e, _)| e.prompt == 0)
        .map(|(_, l)| l.to_string())
        .collect();
    match empty.len() {
        0 => Ok(()),
        n => Err(Error::config(
            "options.pool",
            format!(
                "routers look at the prompt, but {n} examples have none before their first trained token (lines {}{}); \
                 give them a prompt, raise text.max_length if it was cut off, or use pool = \"real\"",
                empty[..n.min(10)].join(", "),
                if n > 10 { ", ..." } else { "" }
            ),
        )),
    }
}
