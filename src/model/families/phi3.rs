//! Phi-3 and Phi-4-mini: fused projections, a part of each head rotates, longrope.

use super::{Facts, Family};
use crate::Result;
use crate::model::{MlpKind, ModelConfig};
use crate::nn::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "phi3",
    class: "Phi3ForCausalLM",
    architecture: Some("phi3"),
    models: "Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
    features: "fused qkv_proj and gate_up_proj, partial rope, longrope, sliding window",
    activation: Activation::Silu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    c.fused_qkv = true;
    c.mlp = MlpKind::Fused;
    c.layers = f.windows(f.sliding_window, |_| true)?;
    Ok(())
}
