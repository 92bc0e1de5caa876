//! The configuration of a decoder from Hugging Face's `config.json`.

use super::describe::describe;
use super::families::{Facts, of_model_type};
use super::{ModelConfig, quantised};
use crate::io::read_json;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

pub(super) fn read(dir: &Path) -> Result<ModelConfig> {
    let path = &dir.join("config.json");
    let fail = |what: String| Error::file(path, what);
    if !path.is_file() {
        let hint = "a model is a folder with config.json, safetensors and tokenizer.json, or a .gguf file";
        return Err(fail(format!("is missing; {hint}")));
    }
    let all: Value = read_json(path)?;
    let family = match &all["model_type"] {
        Value::String(kind) => of_model_type(kind).map_err(fail)?,
        other => {
            let known: Vec<&str> = super::FAMILIES.iter().map(|f| f.model_type).collect();
            return Err(fail(format!("model_type is {other}, expected one of {}", known.join(", "))));
        }
    };
    quantised::check(dir, &all)?;
    let facts: Facts = read_json(path)?;
    describe(family, family.model_type, &facts, all).map_err(|error| fail(error.to_string()))
}
