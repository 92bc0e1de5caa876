//! The configuration of a decoder from Hugging Face's `config.json`.

use super::{Llama3Scaling, ModelConfig, RopeScaling, quantised};
use crate::io::read_json;
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::path::Path;

/// `model_type`s that the decoder computes.
const SUPPORTED: [&str; 3] = ["llama", "mistral", "qwen2"];

/// The fields that matter; names as there.
#[derive(Deserialize)]
struct HfConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f64>,
    rope_scaling: Option<Rope>,
    /// Since transformers 5: the scaling and the base in one place.
    rope_parameters: Option<Rope>,
    partial_rotary_factor: Option<f64>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    hidden_act: Option<String>,
}

#[derive(Deserialize)]
struct Rope {
    rope_type: Option<String>,
    /// What `rope_type` was called before; files may have both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    /// Tables of their own for kinds of layers.
    full_attention: Option<IgnoredAny>,
    sliding_attention: Option<IgnoredAny>,
}

/// First layer with a window in Qwen2 models that do not say it.
const MAX_WINDOW_LAYERS: usize = 28;
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

impl HfConfig {
    /// Whether some layer's attention is limited to the sliding window.
    fn windowed(&self, model_type: &str) -> bool {
        let some_layers = || match &self.layer_types {
            Some(kinds) => kinds.iter().any(|kind| kind == SLIDING),
            None => self.max_window_layers.unwrap_or(MAX_WINDOW_LAYERS) < self.num_hidden_layers,
        };
        match model_type {
            "mistral" => true,
            "qwen2" => self.use_sliding_window == Some(true) && some_layers(),
            _ => false,
        }
    }

    /// Says what is asked for and not computed.
    fn check(&self) -> std::result::Result<(), String> {
        if let Some(act) = self.hidden_act.as_deref().filter(|act| *act != "silu") {
            return Err(format!("hidden_act '{act}' is not supported; silu is"));
        }
        let mut kinds = self.layer_types.iter().flatten();
        if let Some(kind) = kinds.find(|kind| ![FULL, SLIDING].contains(&kind.as_str())) {
            return Err(format!(
                "layer_types has '{kind}', which is not supported; {FULL} and {SLIDING} are"
            ));
        }
        match self.partial_rotary_factor {
            Some(part) if part != 1.0 => Err(format!("partial_rotary_factor is {part}; only 1 is supported")),
            _ => Ok(()),
        }
    }
}

pub(super) fn read(dir: &Path) -> Result<ModelConfig> {
    let path = &dir.join("config.json");
    let fail = |what: String| Error::file(path, what);
    if !path.is_file() {
        let hint = "a model is a folder with config.json, safetensors and tokenizer.json, or a .gguf file";
        return Err(fail(format!("is missing; {hint}")));
    }
    let all: Value = read_json(path)?;
    let supported = SUPPORTED.join(", ");
    let model_type = match &all["model_type"] {
        Value::String(kind) if SUPPORTED.contains(&kind.as_str()) => kind.clone(),
        Value::String(kind) => {
            return Err(fail(format!("model_type '{kind}' is not supported; supported are {supported}")));
        }
        other => return Err(fail(format!("model_type is {other}, expected one of {supported}"))),
    };
    quantised::check(dir, &all)?;
    let c: HfConfig = read_json(path)?;
    c.check().map_err(fail)?;
    let rope = match (&c.rope_parameters, &c.rope_scaling) {
        (Some(rope), _) => Some(("rope_parameters", rope)),
        (None, Some(rope)) => Some(("rope_scaling", rope)),
        (None, None) => None,
    };
    let scaling = rope.map(|(field, rope)| llama3(path, field, rope)).transpose()?.flatten();
    let theta = rope.and_then(|(_, rope)| rope.rope_theta);
    let windowed = c.windowed(&model_type);
    let is_llama = model_type == "llama";
    let attention_bias = is_llama && c.attention_bias == Some(true);
    ModelConfig {
        hidden_size: c.hidden_size,
        intermediate_size: c.intermediate_size,
        num_hidden_layers: c.num_hidden_layers,
        num_attention_heads: c.num_attention_heads,
        num_key_value_heads: c.num_key_value_heads.unwrap_or(c.num_attention_heads),
        head_dim: c.head_dim.unwrap_or(c.hidden_size / c.num_attention_heads.max(1)),
        vocab_size: c.vocab_size,
        max_position_embeddings: c.max_position_embeddings,
        sliding_window: c.sliding_window.filter(|_| windowed),
        rms_norm_eps: c.rms_norm_eps,
        rope_theta: theta.or(c.rope_theta).unwrap_or(10_000.0),
        rope_scaling: scaling,
        tie_word_embeddings: c.tie_word_embeddings == Some(true),
        // Qwen2 has biases on q, k and v whatever its file says; Mistral never has any.
        attention_bias: model_type == "qwen2" || attention_bias,
        o_proj_bias: attention_bias,
        mlp_bias: is_llama && c.mlp_bias == Some(true),
        model_type,
    }
    .check()
    .map_err(|e| fail(e.to_string()))
}

/// Llama 3's scaling, or none; other kinds are refused, since ignoring them would change the model.
fn llama3(path: &Path, field: &str, rope: &Rope) -> Result<Option<RopeScaling>> {
    let fail = |what: String| Err(Error::file(path, what));
    if let Some(part) = rope.partial_rotary_factor.filter(|&p| p != 1.0) {
        return fail(format!("{field}.partial_rotary_factor is {part}; only 1 is supported"));
    }
    if rope.full_attention.is_some() || rope.sliding_attention.is_some() {
        return fail(format!("{field} has a table for each kind of layer, which is not supported; one is"));
    }
    match rope.rope_type.as_deref().or(rope.old_type.as_deref()).unwrap_or("default") {
        "default" => return Ok(None),
        "llama3" => {}
        other => {
            return fail(format!("{field} of type '{other}' is not supported; default and llama3 are"));
        }
    }
    let number = |name: &str, v: Option<f64>| match v {
        Some(v) if v.is_finite() && v > 0.0 => Ok(v),
        Some(v) => Err(Error::file(path, format!("{field}.{name} is {v}, must be a positive number"))),
        None => Err(Error::file(path, format!("{field}.{name} is missing; rope_type llama3 needs it"))),
    };
    let s = Llama3Scaling {
        factor: number("factor", rope.factor)?,
        low_freq_factor: number("low_freq_factor", rope.low_freq_factor)?,
        high_freq_factor: number("high_freq_factor", rope.high_freq_factor)?,
        original_max_position_embeddings: number(
            "original_max_position_embeddings",
            rope.original_max_position_embeddings,
        )?,
    };
    match s.low_freq_factor < s.high_freq_factor {
        true => Ok(Some(RopeScaling::Llama3(s))),
        false => fail(format!(
            "{field}.low_freq_factor ({}) must be below high_freq_factor ({})",
            s.low_freq_factor, s.high_freq_factor
        )),
    }
}
