//! Gemma 2: four norms of `1 + w`, caps on scores and logits, a window in every second layer.

use super::{Facts, Family};
use crate::Result;
use crate::model::{BlockNorms, ModelConfig};
use crate::nn::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    architecture: Some("gemma2"),
    models: "Gemma 2",
    features: "norms around, GeGLU, soft caps, sliding window in every second layer",
    activation: Activation::Gelu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    shared(f, c)?;
    c.attention_softcap = f.attn_logit_softcapping;
    c.logit_softcap = f.final_logit_softcapping;
    c.layers = f.windows(f.sliding_window, |i| i % 2 == 0)?;
    Ok(())
}

/// What Gemma 2 and 3 share.
pub(super) fn shared(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    c.norm.one_more = true;
    c.norms = BlockNorms {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_attention_layernorm"),
        before_mlp: Some("pre_feedforward_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
    };
    c.embedding_scale = (c.hidden_size as f32).sqrt();
    c.attention_scale = match f.query_pre_attn_scalar {
        Some(scalar) => scalar.powf(-0.5),
        // The 27B models, whose GGUF files do not say it.
        None if f.gguf && [46, 62].contains(&c.num_hidden_layers) => {
            ((c.hidden_size / c.num_attention_heads.max(1)) as f32).powf(-0.5)
        }
        None => c.attention_scale,
    };
    // Files of transformers 4 leave out what is the default here.
    c.tie_word_embeddings = f.tie_word_embeddings != Some(false);
    c.causal = f.use_bidirectional_attention != Some(true);
    c.attention_bias = f.attention_bias == Some(true);
    c.o_proj_bias = c.attention_bias;
    Ok(())
}
