//! Llama 2 and 3: the plain decoder that the other families differ from.

use super::{Facts, Family};
use crate::Result;
use crate::model::ModelConfig;
use crate::nn::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "llama",
    class: "LlamaForCausalLM",
    architecture: Some("llama"),
    models: "Llama 2, Llama 3.x, SmolLM2, TinyLlama, Yi",
    features: "RMS norms, SwiGLU, rope",
    activation: Activation::Silu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    c.attention_bias = f.attention_bias == Some(true);
    c.o_proj_bias = f.o_proj_bias.unwrap_or(c.attention_bias);
    c.mlp_bias = f.mlp_bias == Some(true);
    c.gguf_interleaved = true;
    if let Some(count) = f.experts().filter(|_| f.gguf) {
        // GGUF files of Mixtral say llama too.
        return super::mixtral::experts(f, count, c);
    }
    // And so do those of Mistral.
    c.layers = f.windows(f.sliding_window.filter(|_| f.gguf), |_| true)?;
    Ok(())
}
