//! SmolLM3: every fourth layer has no rotation.

use super::{Facts, Family};
use crate::Result;
use crate::model::ModelConfig;
use crate::nn::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "smollm3",
    class: "SmolLM3ForCausalLM",
    architecture: Some("smollm3"),
    models: "SmolLM3",
    features: "as llama, no rope in every fourth layer",
    activation: Activation::Silu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    c.attention_bias = f.attention_bias == Some(true);
    c.o_proj_bias = f.o_proj_bias.unwrap_or(c.attention_bias);
    c.mlp_bias = f.mlp_bias == Some(true);
    c.gguf_interleaved = true;
    // Files of transformers 4 leave out what is the default here.
    c.tie_word_embeddings = f.tie_word_embeddings != Some(false);
    c.layers = super::qwen2::layers(f)?;
    let interval = f.no_rope_layer_interval.unwrap_or(4).max(1);
    for (i, layer) in c.layers.iter_mut().enumerate() {
        let rotated = match &f.no_rope_layers {
            Some(layers) => layers.get(i) != Some(&0),
            None => (i + 1) % interval != 0,
        };
        layer.rope = rotated.then_some(0);
    }
    Ok(())
}
