//! What a file says of a model, with the names of Hugging Face's `config.json`.

use crate::model::{Activation, LayerConfig, RopeConfig};
use crate::ops::rope::{Llama3, LongRope, Pairs, RopeScaling, Yarn};
use crate::{Error, Result};
use serde::Deserialize;

/// The fields that some family reads. A field that is absent says nothing; one that a family needs and does not find is
/// an error.
#[derive(Debug, Clone, Default, Deserialize)]
pub(in crate::model) struct Facts {
    /// Whether they come from a GGUF file, which leaves to its reader what `config.json` says.
    #[serde(skip)]
    pub gguf: bool,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: Option<f32>,
    pub layer_norm_eps: Option<f32>,
    pub norm_epsilon: Option<f32>,
    pub rope_theta: Option<f64>,
    pub rope_local_base_freq: Option<f64>,
    pub rope_scaling: Option<RopeFacts>,
    /// Since transformers 5: the scaling and the base in one place.
    pub rope_parameters: Option<RopeFacts>,
    pub partial_rotary_factor: Option<f64>,
    pub original_max_position_embeddings: Option<usize>,
    pub no_rope_layers: Option<Vec<usize>>,
    pub no_rope_layer_interval: Option<usize>,
    pub tie_word_embeddings: Option<bool>,
    pub attention_bias: Option<bool>,
    pub o_proj_bias: Option<bool>,
    pub mlp_bias: Option<bool>,
    pub use_bias: Option<bool>,
    pub sliding_window: Option<usize>,
    pub use_sliding_window: Option<bool>,
    pub max_window_layers: Option<usize>,
    pub layer_types: Option<Vec<String>>,
    pub sliding_window_pattern: Option<usize>,
    /// The same in some files, which may have both.
    pub _sliding_window_pattern: Option<usize>,
    pub hidden_act: Option<String>,
    /// The same in files of Gemma, where it counts.
    pub hidden_activation: Option<String>,
    pub query_pre_attn_scalar: Option<f32>,
    pub attn_logit_softcapping: Option<f32>,
    pub final_logit_softcapping: Option<f32>,
    pub use_bidirectional_attention: Option<bool>,
    pub embedding_multiplier: Option<f32>,
    pub attention_multiplier: Option<f32>,
    pub residual_multiplier: Option<f32>,
    pub logits_scaling: Option<f32>,
    pub logit_scale: Option<f32>,
    pub num_experts: Option<usize>,
    /// The same in some files.
    pub num_local_experts: Option<usize>,
    pub num_experts_per_tok: Option<usize>,
    pub moe_intermediate_size: Option<usize>,
    pub shared_expert_intermediate_size: Option<usize>,
    pub norm_topk_prob: Option<bool>,
    pub decoder_sparse_step: Option<usize>,
    pub mlp_only_layers: Option<Vec<usize>>,
}

/// A rotation as `rope_scaling` or `rope_parameters` has it.
#[derive(Debug, Clone, Default, Deserialize)]
pub(in crate::model) struct RopeFacts {
    rope_type: Option<String>,
    /// What `rope_type` was called before; files may have both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    pub rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
    /// What each frequency is divided by: the table of GGUF files.
    factors: Option<Vec<f64>>,
    /// Rotations of their own for kinds of layers.
    pub full_attention: Option<Box<RopeFacts>>,
    pub sliding_attention: Option<Box<RopeFacts>>,
}

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

impl Facts {
    /// A field that the family cannot do without.
    pub fn need<T: Copy>(&self, name: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::refused(name, "is missing"))
    }

    /// Which layers have a window: as `layer_types` says, else as `other` does.
    pub fn windows(&self, window: Option<usize>, other: impl Fn(usize) -> bool) -> Result<Vec<LayerConfig>> {
        if let Some(kind) = self.layer_types.iter().flatten().find(|k| ![FULL, SLIDING].contains(&k.as_str()))
        {
            let what = format!("has '{kind}', which is not supported; {FULL} and {SLIDING} are");
            return Err(Error::refused("layer_types", what));
        }
        if let Some(types) = self.layer_types.as_ref().filter(|t| t.len() != self.num_hidden_layers) {
            let expected = format!("a list of {}", self.num_hidden_layers);
            return Err(Error::config("layer_types", format!("a list of {} layers", types.len()), expected));
        }
        let slides = |i: usize| match &self.layer_types {
            Some(types) => types[i] == SLIDING,
            None => other(i),
        };
        let layer =
            |i: usize| LayerConfig { window: window.filter(|_| slides(i)), rope: Some(0), experts: false };
        Ok((0..self.num_hidden_layers).map(layer).collect())
    }

    /// Every so many layers one has no window.
    pub fn window_pattern(&self, default: usize) -> usize {
        self.sliding_window_pattern.or(self._sliding_window_pattern).unwrap_or(default).max(1)
    }

    /// The number of experts.
    pub fn experts(&self) -> Option<usize> {
        self.num_experts.or(self.num_local_experts)
    }

    /// The activation by its name in Hugging Face, or the family's own.
    pub fn activation(&self, default: Activation) -> Result<Activation> {
        match self.hidden_activation.as_deref().or(self.hidden_act.as_deref()) {
            None => Ok(default),
            Some("silu") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::Gelu),
            Some("gelu") => Ok(Activation::GeluErf),
            Some("quick_gelu") => Ok(Activation::QuickGelu),
            Some(other) => Err(Error::refused(
                "hidden_act",
                format!("'{other}' is not supported; silu, gelu, quick_gelu and gelu_pytorch_tanh are"),
            )),
        }
    }

    /// The model's rotation, where it has one for all layers.
    pub fn rope(&self, head_dim: usize) -> Result<RopeConfig> {
        let (field, rope) = match (&self.rope_parameters, &self.rope_scaling) {
            (Some(rope), _) => ("rope_parameters", rope),
            (None, Some(rope)) => ("rope_scaling", rope),
            (None, None) => ("rope_scaling", &RopeFacts::default()),
        };
        if rope.full_attention.is_some() || rope.sliding_attention.is_some() {
            let what = "has a table for each kind of layer, which this family does not have";
            return Err(Error::refused(field, what));
        }
        self.rotation(field, rope, self.rope_theta, head_dim)
    }

    /// A rotation of some layers; `theta` where it names no base itself.
    pub fn rotation(
        &self,
        field: &str,
        rope: &RopeFacts,
        theta: Option<f64>,
        head_dim: usize,
    ) -> Result<RopeConfig> {
        let theta = rope.rope_theta.or(theta).unwrap_or(10_000.0);
        let part = rope.partial_rotary_factor.or(self.partial_rotary_factor).unwrap_or(1.0);
        if !(part > 0.0 && part <= 1.0) {
            return Err(Error::config("partial_rotary_factor", part, "in (0, 1]"));
        }
        let dims = (head_dim as f64 * part) as usize;
        Ok(RopeConfig { theta, dims, pairs: Pairs::Halves, scaling: self.scaling(field, rope)? })
    }

    /// The scaling of a rotation; kinds that are not computed are refused, since ignoring them would change the model.
    fn scaling(&self, field: &str, rope: &RopeFacts) -> Result<RopeScaling> {
        let kind = rope.rope_type.as_deref().or(rope.old_type.as_deref()).unwrap_or("default");
        let number = |name: &str, v: Option<f64>| match v {
            Some(v) if v.is_finite() && v > 0.0 => Ok(v),
            Some(v) => Err(Error::config(format!("{field}.{name}"), v, "a positive number")),
            None => Err(Error::refused(
                format!("{field}.{name}"),
                format!("is missing; rope_type {kind} needs it"),
            )),
        };
        let max = self.max_position_embeddings as f64;
        let original = rope.original_max_position_embeddings;
        let original = original.or(self.original_max_position_embeddings.map(|n| n as f64));
        let whole = |v: f64| v as usize;
        Ok(match kind {
            "default" | "none" => RopeScaling::Default,
            "factors" => RopeScaling::Factors(rope.factors.clone().unwrap_or_default()),
            "linear" => RopeScaling::Linear { factor: number("factor", rope.factor)? },
            "llama3" => RopeScaling::Llama3(llama3(field, rope, &number)?),
            "yarn" => {
                let factor = number("factor", rope.factor)?;
                let original = number("original_max_position_embeddings", original.or(Some(max)))?;
                let plain = Yarn::new(factor, whole(original));
                RopeScaling::Yarn(Yarn {
                    beta_fast: rope.beta_fast.unwrap_or(plain.beta_fast),
                    beta_slow: rope.beta_slow.unwrap_or(plain.beta_slow),
                    mscale: rope.mscale,
                    mscale_all_dim: rope.mscale_all_dim,
                    attention_factor: rope.attention_factor,
                    truncate: rope.truncate.unwrap_or(true),
                    ..plain
                })
            }
            "longrope" | "su" => RopeScaling::LongRope(LongRope {
                short_factor: rope.short_factor.clone().unwrap_or_default(),
                long_factor: rope.long_factor.clone().unwrap_or_default(),
                max_position_embeddings: self.max_position_embeddings,
                original_max_position_embeddings: whole(number(
                    "original_max_position_embeddings",
                    original,
                )?),
                attention_factor: rope.attention_factor,
            }),
            other => {
                let what = format!(
                    "of type '{other}' is not supported; default, linear, llama3, yarn and longrope are"
                );
                return Err(Error::refused(field, what));
            }
        })
    }
}

/// Llama 3's scaling.
fn llama3(
    field: &str,
    rope: &RopeFacts,
    number: &dyn Fn(&str, Option<f64>) -> Result<f64>,
) -> Result<Llama3> {
    let original = rope.original_max_position_embeddings;
    let s = Llama3 {
        factor: number("factor", rope.factor)?,
        low_freq_factor: number("low_freq_factor", rope.low_freq_factor)?,
        high_freq_factor: number("high_freq_factor", rope.high_freq_factor)?,
        original_max_position_embeddings: number("original_max_position_embeddings", original)? as usize,
    };
    if s.low_freq_factor < s.high_freq_factor {
        return Ok(s);
    }
    let expected = format!("below high_freq_factor ({})", s.high_freq_factor);
    Err(Error::config(format!("{field}.low_freq_factor"), s.low_freq_factor, expected))
}
