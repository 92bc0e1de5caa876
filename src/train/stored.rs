//! `run.json`: what a run was started with, and what may change when it goes on.

use super::parts::Parts;
use super::{RunConfig, RunFolder};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Options that a resumed run may change: they do not undo what was trained. Names, or sections with a dot.
const FREE: [&str; 15] = [
    "model",
    "data",
    "train.steps",
    "train.epochs",
    "train.learning_rate",
    "train.warmup_steps",
    "train.schedule",
    "train.max_grad_norm",
    "train.weight_decay",
    "train.recompute",
    "train.eval_every",
    "train.save_every",
    "train.answers",
    "train.keep",
    "train.max_skipped",
];

/// A run as its folder describes it.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoredRun {
    /// Version of the program that wrote it last.
    pub version: String,
    pub config: RunConfig,
    base: String,
    data: String,
    #[serde(skip)]
    folder: Option<RunFolder>,
}

impl StoredRun {
    pub(super) fn of(config: &RunConfig, parts: &Parts) -> Self {
        StoredRun {
            version: env!("CARGO_PKG_VERSION").into(),
            config: config.clone(),
            base: parts.base.clone(),
            data: parts.data.clone(),
            folder: None,
        }
    }

    pub(super) fn text(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|e| Error::config("run.json", e.to_string()))
    }

    /// Opens the folder of a run and locks it.
    ///
    /// # Errors
    /// There is no run, it is malformed, or another process trains there.
    pub fn open(dir: &Path) -> Result<Self> {
        let folder = RunFolder::open(dir)?;
        let text = folder.read_run()?;
        let path = dir.join("run.json");
        let stored: StoredRun = serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))?;
        Ok(StoredRun { folder: Some(folder), ..stored })
    }

    /// What a changed configuration changes, as lines to show. What would undo the training so far is refused.
    ///
    /// # Errors
    /// An option was changed that a resumed run must keep: all of them are listed.
    pub fn changes(&self, config: &RunConfig) -> Result<Vec<String>> {
        let all = self.config.differences(config)?;
        let free = |path: &str| FREE.contains(&path) || path.starts_with("device.");
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
        Err(Error::config("resume", what))
    }

    /// Refuses another base model or other data; the folder, to go on in.
    pub(super) fn same_inputs(self, now: &StoredRun) -> Result<RunFolder> {
        let differ = |what: &str, old: &str, new: &str, path: &Path| match old == new {
            true => Ok(()),
            false => Err(Error::file(
                path,
                format!("is not the {what} of this run: its fingerprint is {new}, the run began with {old}"),
            )),
        };
        differ("base model", &self.base, &now.base, &now.config.model)?;
        differ("training data", &self.data, &now.data, &now.config.data)?;
        self.folder.ok_or_else(|| Error::config("resume", "the run was not opened from a folder"))
    }
}
