//! The configuration of a decoder from Hugging Face's `config.json`.

use super::describe::describe;
use super::families::{Facts, of_model_type};
use super::{ModelConfig, quantised};
use crate::io::read_json;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;

/// The configuration of the decoder of a model that sees; none where the model is a decoder alone.
fn decoder_of(all: &Value) -> Option<Value> {
    let given = &all["text_config"];
    let eps = match (all["model_type"].as_str()?, given) {
        ("idefics3" | "smolvlm", Value::Null) => 1e-5,
        ("llava" | "idefics3" | "smolvlm", _) => 1e-6,
        _ => return None,
    };
    let mut decoder = match given["model_type"].as_str() {
        // What files leave out equals the values of this class.
        None | Some("llama") => json!({
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "vocab_size": 32_000, "max_position_embeddings": 2048, "rms_norm_eps": eps,
        }),
        Some(_) => json!({}),
    };
    let fields = decoder.as_object_mut()?;
    fields.extend(given.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
    if let Some(tied) = all.get("tie_word_embeddings") {
        fields.insert("tie_word_embeddings".into(), tied.clone());
    }
    Some(decoder)
}

pub(super) fn read(dir: &Path) -> Result<ModelConfig> {
    let path = &dir.join("config.json");
    let fail = |what: String| Error::file(path, what);
    if !path.is_file() {
        let hint = "a model is a folder with config.json, safetensors and tokenizer.json, or a .gguf file";
        return Err(fail(format!("is missing; {hint}")));
    }
    let all: Value = read_json(path)?;
    quantised::check(dir, &all)?;
    let (all, nested) = match decoder_of(&all) {
        Some(decoder) => (decoder, true),
        None => (all, false),
    };
    let family = match &all["model_type"] {
        Value::String(kind) => of_model_type(kind).map_err(fail)?,
        other => {
            let known: Vec<&str> = super::FAMILIES.iter().map(|f| f.model_type).collect();
            return Err(fail(format!("model_type is {other}, expected one of {}", known.join(", "))));
        }
    };
    let facts: Facts = if nested {
        Facts::deserialize(&all).map_err(|error| fail(format!("at 'text_config': {error}")))?
    } else {
        read_json(path)?
    };
    describe(family, family.model_type, &facts, all).map_err(|error| fail(error.to_string()))
}
