//! StarCoder2: layer norms with biases, an MLP without a gate, biases everywhere.

use super::{Facts, Family};
use crate::Result;
use crate::model::{MlpKind, ModelConfig, Norm};
use crate::nn::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "starcoder2",
    class: "Starcoder2ForCausalLM",
    architecture: None,
    models: "StarCoder2",
    features: "layer norms, plain MLP, biases, sliding window",
    activation: Activation::Gelu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    c.norm = Norm { layer: true, bias: true, one_more: false, eps: f.norm_epsilon.unwrap_or(1e-5) };
    c.mlp = MlpKind::Plain;
    c.attention_bias = f.use_bias != Some(false);
    c.o_proj_bias = c.attention_bias;
    c.mlp_bias = c.attention_bias;
    c.tie_word_embeddings = f.tie_word_embeddings != Some(false);
    c.layers = f.windows(f.sliding_window, |_| true)?;
    Ok(())
}
