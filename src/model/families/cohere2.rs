//! Command R7B (Cohere 2): attention and MLP side by side, rotations only in layers with a window.

use super::{Facts, Family};
use crate::Result;
use crate::model::{BlockNorms, ModelConfig, Norm};
use crate::nn::Activation;
use crate::ops::rope::Pairs;

pub(super) static FAMILY: Family = Family {
    model_type: "cohere2",
    class: "Cohere2ForCausalLM",
    architecture: Some("cohere2"),
    models: "Command R7B, Command A",
    features: "layer norms, parallel blocks, three of four layers with a sliding window, the others without rope",
    activation: Activation::Silu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    c.norm = Norm { layer: true, bias: false, one_more: false, eps: f.layer_norm_eps.unwrap_or(1e-5) };
    c.norms = BlockNorms { before_attention: Some("input_layernorm"), ..BlockNorms::default() };
    c.parallel = true;
    c.attention_bias = f.attention_bias == Some(true);
    c.o_proj_bias = c.attention_bias;
    c.logit_scale = f.logit_scale.unwrap_or(0.0625);
    c.tie_word_embeddings = f.tie_word_embeddings != Some(false);
    c.ropes = vec![f.rope(c.head_dim)?];
    c.ropes[0].pairs = Pairs::Neighbours;
    let pattern = f.window_pattern(4);
    c.layers = f.windows(f.sliding_window, |i| (i + 1) % pattern != 0)?;
    for layer in &mut c.layers {
        layer.rope = layer.window.map(|_| 0);
    }
    Ok(())
}
