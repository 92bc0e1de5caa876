//! Mixtral: Llama with experts in place of each MLP.

use super::{Facts, Family};
use crate::Result;
use crate::model::{ExpertsConfig, ModelConfig};
use crate::nn::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "mixtral",
    class: "MixtralForCausalLM",
    architecture: None,
    models: "Mixtral 8x7B, 8x22B",
    features: "as mistral, mixture of experts; GGUF files say llama",
    activation: Activation::Silu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    experts(f, f.experts().unwrap_or(8), c)
}

/// Every layer has experts, whose gates add up to one.
pub(super) fn experts(f: &Facts, count: usize, c: &mut ModelConfig) -> Result<()> {
    c.gguf_interleaved = true;
    c.experts = Some(ExpertsConfig {
        count,
        chosen: f.num_experts_per_tok.unwrap_or(2),
        width: c.intermediate_size,
        renormalise: true,
        shared: None,
        mixtral_names: true,
    });
    c.layers = f.windows(f.sliding_window, |_| true)?;
    c.layers.iter_mut().for_each(|layer| layer.experts = true);
    Ok(())
}
