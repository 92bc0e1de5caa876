//! What a run is made of, in memory.

use super::RunConfig;
use crate::adapter::VisionPart;
use crate::data::Dataset;
use crate::model::Model;
use crate::model::vision::VisionModel;
use crate::{Error, Result};
use std::sync::Arc;

/// What a run is made of: its options, a model, and examples.
pub struct Parts {
    pub config: RunConfig,
    pub model: Arc<Model>,
    pub train: Dataset,
    pub valid: Option<Dataset>,
    /// What looked at the pictures of the examples, and what the adapter will remember of it.
    pub vision: Option<(Arc<VisionModel>, VisionPart)>,
    /// The token that fills batches up.
    pub pad: u32,
    /// What the base model and the data are, to recognise them when the run goes on.
    pub base: String,
    pub data: String,
    /// What the user should know before the first step; it is logged.
    pub notes: Vec<String>,
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
        n => Err(Error::refused(
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
