//! GLM-4: four norms, half of each head rotates by neighbouring pairs, gate and up in one.

use super::{Facts, Family};
use crate::Result;
use crate::model::{BlockNorms, MlpKind, ModelConfig};
use crate::nn::Activation;
use crate::ops::rope::Pairs;

pub(super) static FAMILY: Family = Family {
    model_type: "glm4",
    class: "Glm4ForCausalLM",
    architecture: Some("glm4"),
    models: "GLM-4-0414",
    features: "norms around, partial rope of neighbours, fused gate_up_proj, biases on q, k, v",
    activation: Activation::Silu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    c.norms = BlockNorms {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_self_attn_layernorm"),
        before_mlp: Some("post_attention_layernorm"),
        after_mlp: Some("post_mlp_layernorm"),
    };
    c.mlp = MlpKind::Fused;
    c.attention_bias = f.attention_bias == Some(true);
    c.ropes = vec![f.rope(c.head_dim)?];
    c.ropes[0].pairs = Pairs::Neighbours;
    Ok(())
}
