//! Qwen2: biases on q, k and v; a window in the later layers where one is asked for.

use super::{Facts, Family};
use crate::Result;
use crate::model::{LayerConfig, ModelConfig};
use crate::nn::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    architecture: Some("qwen2"),
    models: "Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen",
    features: "as llama, biases on q, k, v",
    activation: Activation::Silu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    // Whatever the file says: there are biases on q, k and v, and none on o.
    c.attention_bias = true;
    c.layers = layers(f)?;
    Ok(())
}

/// First layer with a window in files that do not say it.
const MAX_WINDOW_LAYERS: usize = 28;

/// Layers from `max_window_layers` on have the window, if it is used at all.
pub(super) fn layers(f: &Facts) -> Result<Vec<LayerConfig>> {
    let first = f.max_window_layers.unwrap_or(MAX_WINDOW_LAYERS);
    let window = f.sliding_window.filter(|_| f.use_sliding_window == Some(true) || f.gguf);
    f.windows(window, |i| i >= first || f.gguf)
}
