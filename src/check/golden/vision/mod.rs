//! Files of the vision set: pictures, resizing, towers alone, and whole models in their folders.

mod model;
#[cfg(feature = "images")]
mod pictures;
#[cfg(all(feature = "images", feature = "tokenizer"))]
mod texts;
mod tower;

use super::{Compare, Measured, Replay, beside, bounded};
use crate::io::Checkpoint;
use crate::{Device, Error, Result};
use std::path::{Path, PathBuf};

/// A file of a picture, and what processors make of it.
const PICTURE: &str = "picture";
/// Resizing alone.
const RESIZE: &str = "resize";
const TOWER: &str = "vision tower";
const MODEL: &str = "vision-language model";

/// The kind of a file, if it is one of the vision set.
pub(super) fn kind(file: &Checkpoint) -> Option<&'static str> {
    if file.has("file") && file.metadata("processors").is_ok() {
        return Some(PICTURE);
    }
    if file.has("0.in") && file.metadata("cases").is_ok() {
        return Some(RESIZE);
    }
    if file.has("pixel_values") && file.has("hidden_states") {
        return Some(TOWER);
    }
    (file.has("pixel_values") && file.has("input_ids")).then_some(MODEL)
}

/// Whether files of a kind are replayed.
pub(super) fn is_known(kind: &str) -> bool {
    [TOWER, MODEL].contains(&kind) || cfg!(feature = "images") && [PICTURE, RESIZE].contains(&kind)
}

/// The file of a folder that holds a whole vision-language model: its other files are not looked at one by one.
pub(super) fn model(dir: &Path) -> Option<PathBuf> {
    let expected = dir.join("expected.safetensors");
    let is_model = dir.join("preprocessor_config.json").is_file() && expected.is_file();
    is_model.then_some(expected)
}

/// Replays a file of a kind.
pub(super) fn replay(file: &Checkpoint, kind: &str, device: &Device) -> Result<Replay> {
    match kind {
        #[cfg(feature = "images")]
        PICTURE => pictures::replay(file),
        #[cfg(feature = "images")]
        RESIZE => pictures::replay_resize(file),
        TOWER => tower::replay(file, device),
        MODEL => model::replay(file, device),
        kind => Err(Error::file(file.path(), format!("kind '{kind}' is not known to this build"))),
    }
}
