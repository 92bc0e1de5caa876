//! Granite: Llama with multipliers on embeddings, scores, residual sums and logits.

use super::{Facts, Family};
use crate::Result;
use crate::model::ModelConfig;
use crate::nn::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "granite",
    class: "GraniteForCausalLM",
    architecture: Some("granite"),
    models: "Granite 3.x",
    features: "as llama, with multipliers",
    activation: Activation::Silu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    c.embedding_scale = f.embedding_multiplier.unwrap_or(1.0);
    c.attention_scale = f.attention_multiplier.unwrap_or(c.attention_scale);
    c.residual_scale = f.residual_multiplier.unwrap_or(1.0);
    c.logit_scale = 1.0 / f.logits_scaling.unwrap_or(1.0);
    c.attention_bias = f.attention_bias == Some(true);
    c.o_proj_bias = f.o_proj_bias.unwrap_or(c.attention_bias);
    c.mlp_bias = f.mlp_bias == Some(true);
    c.gguf_interleaved = true;
    Ok(())
}
