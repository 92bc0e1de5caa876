//! Mistral: Llama with a window in every layer, or with none.

use super::{Facts, Family};
use crate::Result;
use crate::model::ModelConfig;
use crate::nn::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "mistral",
    class: "MistralForCausalLM",
    architecture: None,
    models: "Mistral 7B, Mistral Nemo, Mistral Small",
    features: "as llama, sliding window; GGUF files say llama",
    activation: Activation::Silu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    c.layers = f.windows(f.sliding_window, |_| true)?;
    c.gguf_interleaved = true;
    Ok(())
}
