//! A description as `config.json`: the file's own words, or those of its family where a GGUF file was read.

use super::describe::describe;
use super::families::{FAMILIES, Facts, Family};
use super::{Activation, ModelConfig, RopeConfig};
use crate::ops::rope::RopeScaling;
use crate::{Error, Format, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// What frequencies may differ by, relative to each: tables of GGUF files are f32.
const ROUNDING: f64 = 1e-5;

impl ModelConfig {
    /// As `config.json` has it. What the model's own file said stays; the words of GGUF files are those of their family.
    pub fn to_json(&self, format: Format) -> Value {
        let mut json = match &*self.source {
            Value::Object(all) => Value::Object(all.clone()),
            _ => json!({}),
        };
        let family = self.family();
        if self.is_of_gguf() {
            self.add_words(&mut json);
            json["architectures"] = json!(family.map(|family| family.class).into_iter().collect::<Vec<_>>());
        }
        json["model_type"] = family.map_or(self.model_type.as_str(), |family| family.model_type).into();
        json["head_dim"] = self.head_dim.into();
        json["num_key_value_heads"] = self.num_key_value_heads.into();
        json["tie_word_embeddings"] = self.tie_word_embeddings.into();
        for key in ["torch_dtype", "dtype"] {
            if json.get(key).is_some() || key == "torch_dtype" {
                json[key] = dtype_name(format).into();
            }
        }
        json
    }

    /// `general.architecture` of the GGUF files of its family; none where llama.cpp's names are not known.
    pub fn gguf_architecture(&self) -> Option<&'static str> {
        // Files of Mistral and Mixtral say llama too.
        if self.is_llama() { Some("llama") } else { self.family()?.architecture }
    }

    fn is_of_gguf(&self) -> bool {
        self.source.get("model_type").is_none()
    }

    /// Its family; that of a GGUF file of an architecture which several share by what sets them apart.
    fn family(&self) -> Option<&'static Family> {
        let windowed = self.layers.first().is_some_and(|layer| layer.window.is_some());
        let name = match self.model_type.as_str() {
            "llama" if self.experts.is_some() => "mixtral",
            "llama" if windowed => "mistral",
            name => name,
        };
        let known = |family: &&&Family| family.model_type == name || family.architecture == Some(name);
        FAMILIES.iter().find(known).copied()
    }

    /// What GGUF files leave out, or say in other words.
    fn add_words(&self, json: &mut Value) {
        let activation = match self.activation {
            Activation::Silu => "silu",
            Activation::Gelu => "gelu_pytorch_tanh",
            Activation::GeluErf => "gelu",
            Activation::QuickGelu => "quick_gelu",
        };
        json["hidden_act"] = activation.into();
        // Gemma adds 1 to its norms, and has words of its own.
        if self.norm.one_more {
            json["hidden_activation"] = activation.into();
            let scalar = f64::from(self.attention_scale).powi(-2);
            json["query_pre_attn_scalar"] = (scalar.round() as u64).into();
        }
        let windows = self.layers.iter().filter_map(|layer| layer.window).count();
        if windows > 0 {
            json["use_sliding_window"] = true.into();
            json["max_window_layers"] = 0.into();
        }
        if windows > 0 && windows < self.layers.len() {
            let kind = |window: Option<usize>| {
                if window.is_some() { "sliding_attention" } else { "full_attention" }
            };
            json["layer_types"] = self.layers.iter().map(|layer| kind(layer.window)).collect();
        }
        if self.layers.iter().any(|layer| layer.rope.is_none()) {
            json["no_rope_layers"] = self.layers.iter().map(|layer| u8::from(layer.rope.is_some())).collect();
        }
        if let Some(experts) = &self.experts {
            json["num_local_experts"] = experts.count.into();
            json["norm_topk_prob"] = experts.renormalise.into();
            json["decoder_sparse_step"] = 1.into();
            let dense = (0..self.layers.len()).filter(|&layer| !self.has_experts(layer));
            json["mlp_only_layers"] = dense.collect();
        }
        json["attention_bias"] = self.attention_bias.into();
        json["mlp_bias"] = self.mlp_bias.into();
        json["rope_scaling"] = self.scaling_json();
        if let Some(original) = self.ropes.first().and_then(RopeConfig::border) {
            json["original_max_position_embeddings"] = original.into();
        }
    }

    /// The scaled frequencies of a GGUF file as `config.json` has them. A table of factors that is not Llama 3's stands
    /// as it is, which no reader of `config.json` knows.
    fn scaling_json(&self) -> Value {
        let Some(rope) = self.ropes.first() else { return Value::Null };
        match &rope.scaling {
            RopeScaling::Factors(factors) => match rope.llama3_of(factors) {
                Some(s) => json!({
                    "rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low_freq_factor,
                    "high_freq_factor": s.high_freq_factor,
                    "original_max_position_embeddings": s.original_max_position_embeddings,
                }),
                None => json!({ "rope_type": "factors", "factors": factors }),
            },
            // transformers takes these three fields and no other.
            RopeScaling::LongRope(long) => json!({
                "type": "longrope", "short_factor": long.short_factor, "long_factor": long.long_factor,
            }),
            _ => self.source.get("rope_scaling").cloned().unwrap_or(Value::Null),
        }
    }

    /// Refuses what `config.json` has no words for: what is written must be read as the same description.
    pub(super) fn check_writable(&self, json: &Value) -> Result<()> {
        if !self.is_of_gguf() {
            return Ok(());
        }
        if let Some(rope) = self.ropes.first()
            && let RopeScaling::Factors(factors) = &rope.scaling
            && rope.llama3_of(factors).is_none()
        {
            let what = "this GGUF file divides its frequencies by factors that are not those of rope_type llama3, and \
                        config.json has no other table; give the Hugging Face directory of this model";
            return Err(Error::refused("rope_scaling", what));
        }
        let read = || {
            let family = self.family()?;
            let facts = Facts::deserialize(json).ok()?;
            describe(family, family.model_type, &facts, Value::Null).ok()
        };
        if read().is_some_and(|read| self.is_same(&read)) {
            return Ok(());
        }
        let what = format!(
            "config.json cannot say all that this GGUF file of a {} model says; give the Hugging Face directory of this model",
            self.model_type
        );
        Err(Error::refused("model", what))
    }

    /// Whether another description computes the same, whatever words it was read from.
    pub(super) fn is_same(&self, other: &ModelConfig) -> bool {
        let named = ModelConfig {
            model_type: self.model_type.clone(),
            source: self.source.clone(),
            ropes: self.ropes.clone(),
            ..other.clone()
        };
        let ropes = self.ropes.iter().zip(&other.ropes);
        named == *self
            && self.ropes.len() == other.ropes.len()
            && ropes.into_iter().all(|(a, b)| turns_alike(a, b))
    }
}

/// Whether two rotations turn by the same angles, for short and for long sequences.
fn turns_alike(one: &RopeConfig, other: &RopeConfig) -> bool {
    let close = |a: f64, b: f64| (a - b).abs() <= ROUNDING * b.abs();
    let at = |length: usize| match (one.frequencies(length), other.frequencies(length)) {
        (Ok(a), Ok(b)) => {
            let mut pairs = a.per_pair.iter().zip(&b.per_pair);
            close(a.amplitude, b.amplitude) && pairs.all(|(&a, &b)| close(a, b))
        }
        _ => false,
    };
    let layout = |rope: &RopeConfig| (rope.dims, rope.pairs, rope.border());
    layout(one) == layout(other) && at(1) && at(usize::MAX)
}

fn dtype_name(format: Format) -> &'static str {
    match format {
        Format::F16 => "float16",
        Format::Bf16 => "bfloat16",
        _ => "float32",
    }
}
