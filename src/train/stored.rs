//! `run.json`: what a run was started with, and what may change when it goes on.

use super::parts::Parts;
use super::{RunConfig, RunFolder};
use crate::mixture::Methods;
use crate::model::Weights;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// Options that a resumed run may change: they do not undo what was trained. Names, or sections with a dot.
const FREE: [&str; 21] = [
    "model",
    "data",
    "train.steps",
    "train.epochs",
    "train.learning_rate",
    "train.warmup_steps",
    "train.schedule",
    "train.min_learning_rate",
    "train.decay_share",
    "train.restarts",
    "train.max_grad_norm",
    "train.weight_decay",
    "train.recompute",
    "train.eval_every",
    "train.save_every",
    "train.patience",
    "train.answers",
    "train.keep",
    "train.max_skipped",
    "text.feature_memory",
    "text.feature_cache",
];

/// Free as long as the projector is trained before and after.
const PROJECTOR: &str = "train.projector_learning_rate";

/// What is said of an input whose fingerprint is another.
fn differ(what: &str, old: &str, new: &str) -> Option<String> {
    let text =
        || format!("is not the {what} of this run: its fingerprint is {new}, the run began with {old}");
    (old != new).then(text)
}

/// The first key of `run.json` up to its value, and what stands for the value when it is computed.
const CHECKSUM: &str = "\"crc32\": \"";
const BLANK: &str = "--------";

/// Whether a text has the checksum that it was written with. Runs of older versions have none.
fn is_as_written(text: &str) -> bool {
    let found =
        text.split_once(CHECKSUM).and_then(|(before, rest)| Some((before, rest.split_at_checked(8)?)));
    let Some((before, (checksum, rest))) = found else { return true };
    let blank = format!("{before}{CHECKSUM}{BLANK}{rest}");
    checksum == format!("{:08x}", crc32fast::hash(blank.as_bytes()))
}

/// A checksum of all that is trained and validated: tokens, which of them are trained, what routers may look at.
fn tokens_checksum(parts: &Parts) -> String {
    let mut hash = crc32fast::Hasher::new();
    hash.update(&parts.pad.to_le_bytes());
    for example in [Some(&parts.train), parts.valid.as_ref()].into_iter().flatten().flat_map(|d| &d.examples)
    {
        hash.update(&(example.ids.len() as u64).to_le_bytes());
        hash.update(&(example.prompt as u64).to_le_bytes());
        hash.update(bytemuck::cast_slice(&example.ids));
        let trained: Vec<u8> = example.trained.iter().map(|&t| u8::from(t)).collect();
        hash.update(&trained);
    }
    format!("{:08x}", hash.finalize())
}

/// A checksum of the pictures' files, in the order of the examples; none where there are no pictures.
fn pictures_checksum(parts: &Parts) -> Option<String> {
    let sets = [Some(&parts.train), parts.valid.as_ref()].into_iter().flatten();
    let pictures = sets.flat_map(|set| &set.examples).flat_map(|example| &example.pictures);
    let mut files = pictures.filter_map(|place| Some(place.features.as_ref()?.file)).peekable();
    files.peek()?;
    let mut hash = crc32fast::Hasher::new();
    files.for_each(|file| hash.update(&file.to_le_bytes()));
    Some(format!("{:08x}", hash.finalize()))
}

/// `run.json`.
#[derive(Debug, Serialize, Deserialize)]
struct RunFile {
    /// Version of the program that wrote it last.
    version: String,
    config: Value,
    base: String,
    data: String,
    /// Of the examples' tokens: they depend on the tokenizer, the template and this program. Older runs have none.
    #[serde(default)]
    tokens: Option<String>,
    /// Of the pictures' files. Runs without pictures have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pictures: Option<String>,
}

/// A run as its folder describes it.
#[derive(Debug)]
pub struct StoredRun {
    pub config: RunConfig,
    /// What the user should know of the stored settings.
    pub notes: Vec<String>,
    file: RunFile,
    folder: Option<RunFolder>,
}

impl StoredRun {
    pub(super) fn of(parts: &Parts) -> Result<Self> {
        let config = parts.config.anchored();
        let file = RunFile {
            version: env!("CARGO_PKG_VERSION").into(),
            config: config.tree()?,
            base: parts.base.clone(),
            data: parts.data.clone(),
            tokens: Some(tokens_checksum(parts)),
            pictures: pictures_checksum(parts),
        };
        Ok(StoredRun { config, notes: Vec::new(), file, folder: None })
    }

    /// Version of the program that wrote it last.
    pub fn version(&self) -> &str {
        &self.file.version
    }

    /// The text of `run.json`, with a checksum of itself.
    pub(super) fn text(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(&self.file);
        let text = text.map_err(|error| Error::refused("run.json", error.to_string()))?;
        let blank = text.replacen('{', &format!("{{\n  {CHECKSUM}{BLANK}\","), 1);
        Ok(blank.replacen(BLANK, &format!("{:08x}", crc32fast::hash(blank.as_bytes())), 1))
    }

    /// Opens the folder of a run and locks it; `methods` are those that it may have trained. What was not known when it
    /// was stored has its default.
    ///
    /// # Errors
    /// There is no run, it is malformed or was changed since it was written, or another process trains there.
    pub fn open(dir: &Path, methods: &Methods) -> Result<Self> {
        let folder = RunFolder::open(dir)?;
        let text = folder.read_run()?;
        let path = dir.join("run.json");
        if !is_as_written(&text) {
            let what = "is damaged or was changed by hand: its checksum is another. Put it back as it was; settings \
                        are changed with options, as in --set train.learning_rate=1e-4. To take it as it is, delete \
                        its line crc32";
            return Err(Error::file(path, what));
        }
        let file: RunFile =
            serde_json::from_str(&text).map_err(|error| Error::file(&path, error.to_string()))?;
        let (config, notes) = RunConfig::stored(&file.config, methods)
            .map_err(|error| Error::file(&path, error.to_string()))?;
        Ok(StoredRun { config, notes, file, folder: Some(folder) })
    }

    /// What a changed configuration changes, as lines to show. What would undo the training so far is refused.
    ///
    /// # Errors
    /// An option was changed that a resumed run must keep: all of them are listed.
    pub fn changes(&self, config: &RunConfig) -> Result<Vec<String>> {
        let mut now = config.anchored();
        if now.device.weights == Weights::Auto {
            // What is left open is what it was.
            now.device.weights = self.config.device.weights;
        }
        let all = self.config.anchored().differences(&now)?;
        let trains = |config: &RunConfig| config.train.projector_learning_rate.is_some();
        let same_parts = trains(&self.config) == trains(config);
        let free = |path: &str| {
            FREE.contains(&path) || path.starts_with("device.") || (path == PROJECTOR && same_parts)
        };
        let line = |(path, values): &(String, String)| format!("{path}: {values}");
        let (may, must_not): (Vec<_>, Vec<_>) = all.iter().partition(|(path, _)| free(path));
        if must_not.is_empty() {
            return Ok(may.into_iter().map(line).collect());
        }
        let list: Vec<String> = must_not.into_iter().map(line).collect();
        let what = format!(
            "cannot change when a run goes on: {}. What can: {}, and device; start a new run for the rest",
            list.join("; "),
            FREE.join(", ")
        );
        Err(Error::refused("resume", what))
    }

    /// What is said where the base model has other bytes than when the run began: it may be the same in another
    /// precision, which the checkpoint's adapter can tell.
    pub(super) fn other_base(&self, now: &StoredRun) -> Option<Error> {
        let what = differ("base model", &self.file.base, &now.file.base)?;
        Some(Error::file(&now.config.model, what))
    }

    /// Refuses other data; the folder, to go on in.
    pub(super) fn same_data(self, now: &StoredRun) -> Result<RunFolder> {
        if let Some(what) = differ("training data", &self.file.data, &now.file.data) {
            return Err(Error::file(&now.config.data, what));
        }
        if self.file.tokens.is_some() && self.file.tokens != now.file.tokens {
            let what = "the examples have other tokens than when this run began: its chat template or its tokenizer \
                        is another, or this is another version of the program; put the old one back, or start a new run";
            return Err(Error::refused("resume", what));
        }
        if self.file.pictures.is_some() && self.file.pictures != now.file.pictures {
            let what = "a picture of the data has other bytes than when this run began; put the old ones back, or start a \
                        new run";
            return Err(Error::refused("resume", what));
        }
        self.folder.ok_or_else(|| Error::refused("resume", "the run was not opened from a folder"))
    }
}
