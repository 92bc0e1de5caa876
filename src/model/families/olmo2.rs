//! OLMo 2: norms behind attention and MLP alone, and norms over all queries and all keys.

use super::{Facts, Family};
use crate::Result;
use crate::model::{BlockNorms, ModelConfig, QkNorm};
use crate::nn::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "olmo2",
    class: "Olmo2ForCausalLM",
    architecture: Some("olmo2"),
    models: "OLMo 2",
    features: "norms after, norms of all of q and k",
    activation: Activation::Silu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    c.norms = BlockNorms {
        before_attention: None,
        after_attention: Some("post_attention_layernorm"),
        before_mlp: None,
        after_mlp: Some("post_feedforward_layernorm"),
    };
    c.qk_norm = Some(QkNorm::Whole);
    c.attention_bias = f.attention_bias == Some(true);
    c.o_proj_bias = f.o_proj_bias.unwrap_or(c.attention_bias);
    Ok(())
}
