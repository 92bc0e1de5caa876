//! The description of a decoder: what its blocks are made of. A family makes it from `config.json` or from the metadata
//! of a GGUF file; the decoder, its sites, the names and shapes of its tensors follow from it.

use super::rope::RopeConfig;
use crate::nn::Activation;
use crate::{Error, Result};
use serde_json::Value;
use std::sync::Arc;

/// How states are normalised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Subtract the mean and divide by the standard deviation, instead of dividing by the root mean square.
    pub layer: bool,
    /// Whether a bias is added (layer norms alone).
    pub bias: bool,
    /// Whether 1 is added to the weights, as `config.json` models of Gemma have it.
    pub one_more: bool,
    pub eps: f32,
}

/// The norms of a block by the names of their tensors; none where there is no norm.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BlockNorms {
    pub before_attention: Option<&'static str>,
    pub after_attention: Option<&'static str>,
    pub before_mlp: Option<&'static str>,
    pub after_mlp: Option<&'static str>,
}

impl BlockNorms {
    /// One before the attention and one before the MLP.
    pub const PRE: BlockNorms = BlockNorms {
        before_attention: Some("input_layernorm"),
        before_mlp: Some("post_attention_layernorm"),
        after_attention: None,
        after_mlp: None,
    };
    /// The same in vision towers.
    pub const TOWER: BlockNorms = BlockNorms {
        before_attention: Some("layer_norm1"),
        before_mlp: Some("layer_norm2"),
        ..BlockNorms::PRE
    };

    /// The names with what llama.cpp has in their place.
    pub(super) fn names(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let all = [
            (self.before_attention, "attn_norm"),
            (self.after_attention, "post_attention_norm"),
            (self.before_mlp, "ffn_norm"),
            (self.after_mlp, "post_ffw_norm"),
        ];
        all.into_iter().filter_map(|(ours, theirs)| Some((ours?, theirs)))
    }
}

/// The names of layers, and of the linears that families name differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerNames {
    /// What the number of a layer stands behind.
    pub layers: &'static str,
    /// The projection behind the attention.
    pub o_proj: &'static str,
    /// The two linears of an MLP without a gate.
    pub plain_mlp: [&'static str; 2],
}

impl LayerNames {
    /// Those of decoders.
    pub const DECODER: LayerNames =
        LayerNames { layers: "model.layers", o_proj: "o_proj", plain_mlp: ["c_fc", "c_proj"] };
    /// Those of vision towers.
    pub const TOWER: LayerNames =
        LayerNames { layers: "vision_model.encoder.layers", o_proj: "out_proj", plain_mlp: ["fc1", "fc2"] };
}

/// RMS norms of queries and keys before their rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Over each head, with one weight `[head_dim]` for all heads.
    Head,
    /// Over all heads together.
    Whole,
}

/// How the MLP of a block is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MlpKind {
    /// `down(act(gate x) * up x)`
    #[default]
    Gated,
    /// The same; gate and up are the first and the second half of one `gate_up_proj`.
    Fused,
    /// `c_proj(act(c_fc x))`, `fc2(act(fc1 x))` in towers.
    Plain,
}

/// MLPs of which a router chooses some for each token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertsConfig {
    pub count: usize,
    /// Experts of a token.
    pub chosen: usize,
    /// Width inside an expert.
    pub width: usize,
    /// Whether the gates of the chosen experts are divided by their sum.
    pub renormalise: bool,
    /// Width inside the expert that all tokens use, beside the chosen ones.
    pub shared: Option<usize>,
    /// The names of Mixtral: `block_sparse_moe.experts.N.w1`.
    pub mixtral_names: bool,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LayerConfig {
    /// Positions that a query sees, itself included; all when absent.
    pub window: Option<usize>,
    /// Which of the model's rotations; none where positions are not encoded.
    pub rope: Option<usize>,
    /// Whether its MLP is one of experts.
    pub experts: bool,
}

/// A decoder, described; of a vision tower, its layers.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// As `config.json` names it; for GGUF files the architecture.
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    pub norm: Norm,
    pub names: LayerNames,
    pub norms: BlockNorms,
    pub qk_norm: Option<QkNorm>,
    /// Whether attention and MLP read the same norm and are added together.
    pub parallel: bool,
    /// Whether q, k and v have biases.
    pub attention_bias: bool,
    /// Whether o has one.
    pub o_proj_bias: bool,
    /// Whether the linears of the MLP have one.
    pub mlp_bias: bool,
    /// Whether q, k and v are one linear, `qkv_proj`.
    pub fused_qkv: bool,
    /// Factor on the products of queries and keys.
    pub attention_scale: f32,
    /// Scores of attention become `cap tanh(score / cap)`.
    pub attention_softcap: Option<f32>,
    pub causal: bool,
    pub mlp: MlpKind,
    pub activation: Activation,
    pub experts: Option<ExpertsConfig>,
    /// Factor on the embedded tokens.
    pub embedding_scale: f32,
    /// Factor on what attention and MLP add to the state.
    pub residual_scale: f32,
    /// Factor on the logits.
    pub logit_scale: f32,
    /// Logits become `cap tanh(logit / cap)`.
    pub logit_softcap: Option<f32>,
    /// The model's rotations, which layers name by number.
    pub ropes: Vec<RopeConfig>,
    pub layers: Vec<LayerConfig>,
    /// Whether GGUF files have the rows of q and k in the order of neighbouring pairs.
    pub(super) gguf_interleaved: bool,
    /// The file's own words, with the names of `config.json`.
    pub(super) source: Arc<Value>,
}

impl ModelConfig {
    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// The first field that cannot be, with the values.
    pub fn check(self) -> Result<Self> {
        let bad = |field: &str, found: String, expected: &str| Err(Error::config(field, found, expected));
        for (field, v) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            // The largest models stay far below; beyond, sizes would overflow.
            if v == 0 || v >= 1 << 28 {
                return bad(field, v.to_string(), &format!("in 1..{}", 1 << 28));
            }
        }
        let h = self.num_attention_heads;
        let kv = self.num_key_value_heads;
        if !h.is_multiple_of(kv) {
            let expected = format!("a multiple of num_key_value_heads ({kv})");
            return bad("num_attention_heads", h.to_string(), &expected);
        }
        if !self.head_dim.is_multiple_of(2) || self.head_dim > 256 {
            return bad("head_dim", self.head_dim.to_string(), "even and at most 256");
        }
        if self.layers.iter().any(|l| l.window == Some(0)) {
            return bad("sliding_window", "0".into(), "at least 1, or null for none");
        }
        if !(self.norm.eps > 0.0 && self.norm.eps < 1.0) {
            let field = if self.norm.layer { "layer_norm_eps" } else { "rms_norm_eps" };
            return bad(field, self.norm.eps.to_string(), "in (0, 1)");
        }
        for (field, v) in [
            ("attention scale", self.attention_scale),
            ("embedding_multiplier", self.embedding_scale),
            ("residual_multiplier", self.residual_scale),
            ("logit scale", self.logit_scale),
            ("attn_logit_softcapping", self.attention_softcap.unwrap_or(1.0)),
            ("final_logit_softcapping", self.logit_softcap.unwrap_or(1.0)),
        ] {
            if !(v.is_finite() && v > 0.0) {
                return bad(field, v.to_string(), "a positive number");
            }
        }
        self.ropes.iter().try_for_each(|rope| rope.check(self.head_dim))?;
        if let Some(e) = &self.experts {
            if e.count == 0 || e.count >= 1 << 16 || e.chosen == 0 || e.chosen > e.count {
                let expected = format!("in 1..={} (the number of experts)", e.count);
                return bad("num_experts_per_tok", e.chosen.to_string(), &expected);
            }
            if e.width == 0 || e.width >= 1 << 28 {
                return bad("moe_intermediate_size", e.width.to_string(), &format!("in 1..{}", 1 << 28));
            }
        }
        Ok(self)
    }

    /// Positions that a sequence may have.
    pub fn max_positions(&self) -> usize {
        self.max_position_embeddings
    }

    /// Whether the architecture is Llama's, which Mistral's is too; GGUF files do not tell them apart.
    pub fn is_llama(&self) -> bool {
        matches!(self.model_type.as_str(), "llama" | "mistral" | "mixtral")
    }

    /// Whether a projection has a bias.
    pub fn has_bias(&self, projection: &str) -> bool {
        match projection {
            p if p.contains("expert") => false,
            p if p.ends_with(self.names.o_proj) => self.o_proj_bias,
            p if p.contains("mlp.") => self.mlp_bias,
            _ => self.attention_bias,
        }
    }
}
