//! Qwen2-MoE: Qwen2 with experts, and one that all tokens use behind a gate.

use super::{Facts, Family};
use crate::Result;
use crate::model::{ExpertsConfig, ModelConfig};
use crate::nn::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen2_moe",
    class: "Qwen2MoeForCausalLM",
    architecture: Some("qwen2moe"),
    models: "Qwen1.5-MoE, Qwen2-57B-A14B",
    features: "as qwen2, mixture of experts with a shared one",
    activation: Activation::Silu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    c.attention_bias = true;
    c.layers = super::qwen2::layers(f)?;
    let shared = f.need("shared_expert_intermediate_size", f.shared_expert_intermediate_size)?;
    experts(f, c, Some(shared), f.norm_topk_prob == Some(true))
}

/// Experts in every `decoder_sparse_step`th layer that `mlp_only_layers` does not name.
pub(super) fn experts(
    f: &Facts,
    c: &mut ModelConfig,
    shared: Option<usize>,
    renormalise: bool,
) -> Result<()> {
    c.experts = Some(ExpertsConfig {
        count: f.need("num_experts", f.experts())?,
        chosen: f.need("num_experts_per_tok", f.num_experts_per_tok)?,
        width: f.need("moe_intermediate_size", f.moe_intermediate_size)?,
        renormalise,
        shared,
        mixtral_names: false,
    });
    let step = f.decoder_sparse_step.unwrap_or(1).max(1);
    for (i, layer) in c.layers.iter_mut().enumerate() {
        let dense = f.mlp_only_layers.as_ref().is_some_and(|l| l.contains(&i));
        layer.experts = !dense && (i + 1) % step == 0;
    }
    Ok(())
}
