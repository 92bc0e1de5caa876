//! From the facts of a file to a description: what all families share, then what the family says.

use super::config::{BlockNorms, LayerNames, MlpKind, ModelConfig, Norm};
use super::families::{Facts, Family};
use crate::Result;
use crate::nn::Activation;
use serde_json::Value;
use std::sync::Arc;

/// The description of a model of a family.
pub(super) fn describe(family: &Family, name: &str, facts: &Facts, source: Value) -> Result<ModelConfig> {
    let head_dim = facts.head_dim.unwrap_or(facts.hidden_size / facts.num_attention_heads.max(1));
    let norm = Norm { layer: false, bias: false, one_more: false, eps: facts.rms_norm_eps.unwrap_or(0.0) };
    let mut config = ModelConfig {
        model_type: name.into(),
        hidden_size: facts.hidden_size,
        intermediate_size: facts.intermediate_size,
        num_hidden_layers: facts.num_hidden_layers,
        num_attention_heads: facts.num_attention_heads,
        num_key_value_heads: facts.num_key_value_heads.unwrap_or(facts.num_attention_heads),
        head_dim,
        vocab_size: facts.vocab_size,
        max_position_embeddings: facts.max_position_embeddings,
        tie_word_embeddings: facts.tie_word_embeddings == Some(true),
        norm,
        names: LayerNames::DECODER,
        norms: BlockNorms::PRE,
        qk_norm: None,
        parallel: false,
        attention_bias: false,
        o_proj_bias: false,
        mlp_bias: false,
        fused_qkv: false,
        attention_scale: (head_dim as f32).powf(-0.5),
        attention_softcap: None,
        causal: true,
        mlp: MlpKind::Gated,
        activation: Activation::Silu,
        experts: None,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_softcap: None,
        ropes: Vec::new(),
        layers: Vec::new(),
        gguf_interleaved: false,
        source: Arc::new(source),
    };
    // Far more layers than a file can have are refused before a list of them is made.
    if facts.num_hidden_layers >= 1 << 20 {
        let range = format!("in 1..{}", 1 << 20);
        return Err(crate::Error::config("num_hidden_layers", facts.num_hidden_layers, range));
    }
    config.activation = facts.activation(family.activation)?;
    (family.describe)(facts, &mut config)?;
    if config.ropes.is_empty() {
        config.ropes.push(facts.rope(head_dim)?);
    }
    if config.layers.is_empty() {
        config.layers = facts.windows(None, |_| false)?;
    }
    config.check()
}
