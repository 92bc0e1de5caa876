//! Qwen3: norms of each query and key head before their rotation.

use super::{Facts, Family};
use crate::Result;
use crate::model::{ModelConfig, QkNorm};
use crate::nn::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    architecture: Some("qwen3"),
    models: "Qwen3",
    features: "as llama, norms of q and k heads",
    activation: Activation::Silu,
    describe,
};

pub(super) fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    c.qk_norm = Some(QkNorm::Head);
    c.attention_bias = f.attention_bias == Some(true);
    c.o_proj_bias = f.o_proj_bias.unwrap_or(c.attention_bias);
    c.layers = super::qwen2::layers(f)?;
    Ok(())
}
