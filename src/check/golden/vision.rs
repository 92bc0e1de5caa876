//! The files of the vision set by kind.

use crate::io::Checkpoint;
use std::path::{Path, PathBuf};

/// A file of a picture, and what processors make of it.
pub(super) const PICTURE: &str = "picture";
/// Resizing alone.
pub(super) const RESIZE: &str = "resize";
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

/// The file of a folder that holds a whole vision-language model: its other files are not looked at one by one.
pub(super) fn model(dir: &Path) -> Option<PathBuf> {
    let expected = dir.join("expected.safetensors");
    let is_model = dir.join("preprocessor_config.json").is_file() && expected.is_file();
    is_model.then_some(expected)
}
