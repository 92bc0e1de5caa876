//! Models, adapters and reference files.

mod adapters;
mod claims;
mod config;
mod files;

use crate::common::cli::{mixlora, output};
use crate::common::edit::Edit;
use crate::common::tiny::write_text_model;
use mixlora::{Device, model::Model};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A tiny model with text, in a folder that is deleted later.
fn tiny() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_text_model(dir.path());
    dir
}

/// What the program says of a prompt, on stdout and stderr; it must end with this code.
fn generate(model: &Path, more: &[&str], code: i32) -> (String, String) {
    let model = model.to_str().unwrap();
    let args = [&["generate", "--model", model, "--prompt", "ab", "--max-tokens", "4"], more].concat();
    output(mixlora(&args), code)
}

/// The program refuses the model as bad input, with all of these in the message.
fn refused(model: &Path, expected: &[&str]) {
    let (out, err) = generate(model, &[], 3);
    assert_eq!(out, "", "{err}");
    for text in expected {
        assert!(err.contains(text), "'{text}' is not in: {err}");
    }
}

fn open(model: &Path) -> std::sync::Arc<Model> {
    Model::open(model, &Device::cpu()).unwrap()
}

/// Changes a JSON file.
fn change(path: &Path, change: impl Fn(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// Writes a folder's weights again, changed.
fn reweigh(dir: &Path, change: impl Fn(Edit) -> Edit) -> PathBuf {
    change(Edit::open(&dir.join("model.safetensors"))).write(dir, "model")
}
