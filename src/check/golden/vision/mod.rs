//! Files of models that see: towers alone, and whole models in their folders.

mod model;
mod tower;

use super::{Compare, Measured, Replay, beside, bounded};
use crate::io::Checkpoint;
use crate::{Device, Result};
use serde_json::Value;

/// Whether a file holds a tower or belongs to a model that sees.
pub(super) fn is_vision(file: &Checkpoint, config: &Value) -> bool {
    config.get("feature_layer").is_some() && file.has("cotangent") || model::is_model(file)
}

/// Replays a file.
pub(super) fn replay(file: &Checkpoint, config: &Value, device: &Device) -> Result<Replay> {
    if model::is_model(file) { model::replay(file, device) } else { tower::replay(file, config, device) }
}
