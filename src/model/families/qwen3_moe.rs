//! Qwen3-MoE: Qwen3 with experts.

use super::{Facts, Family};
use crate::Result;
use crate::model::ModelConfig;
use crate::nn::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3_moe",
    class: "Qwen3MoeForCausalLM",
    architecture: Some("qwen3moe"),
    models: "Qwen3-30B-A3B, Qwen3-235B-A22B",
    features: "as qwen3, mixture of experts",
    activation: Activation::Silu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    super::qwen3::describe(f, c)?;
    super::qwen2_moe::experts(f, c, None, f.norm_topk_prob == Some(true) || f.gguf)
}
