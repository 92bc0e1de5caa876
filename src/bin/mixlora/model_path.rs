//! `--model`: a path, or a name on the Hugging Face Hub that was downloaded.

use crate::out;
use clap::builder::{OsStringValueParser, TypedValueParser};
use mixlora::model::hub_snapshot;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Reads the option. A name stands for its folder in the Hub's cache; what is no path and not there is left for its
/// reader to refuse.
pub fn model_path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(found)
}

fn found(given: OsString) -> PathBuf {
    let Some(dir) = hub_snapshot(Path::new(&given)) else { return given.into() };
    out::note(&format!("note: {} is taken from {}", given.to_string_lossy(), dir.display()));
    dir
}
