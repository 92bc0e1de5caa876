//! Gemma 3 (text): as Gemma 2 without caps, with norms of q and k, and another rotation in layers with a window.

use super::{Facts, Family, RopeFacts};
use crate::Result;
use crate::model::{ModelConfig, QkNorm};
use crate::nn::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "gemma3_text",
    class: "Gemma3ForCausalLM",
    architecture: Some("gemma3"),
    models: "Gemma 3 (text)",
    features: "norms around, GeGLU, norms of q and k heads, five of six layers with a sliding window and a rope of their own",
    activation: Activation::Gelu,
    describe,
};

fn describe(f: &Facts, c: &mut ModelConfig) -> Result<()> {
    super::gemma2::shared(f, c)?;
    c.qk_norm = Some(QkNorm::Head);
    let pattern = f.window_pattern(6);
    c.layers = f.windows(f.sliding_window, |i| (i + 1) % pattern != 0)?;
    let none = RopeFacts::default();
    let kinds = f.rope_parameters.as_ref();
    let full = kinds.and_then(|r| r.full_attention.as_deref()).or(f.rope_scaling.as_ref()).unwrap_or(&none);
    let sliding = kinds.and_then(|r| r.sliding_attention.as_deref()).unwrap_or(&none);
    let theta = f.rope_theta.or(Some(1e6));
    c.ropes = vec![
        f.rotation("rope_scaling", full, theta, c.head_dim)?,
        f.rotation("rope_parameters.sliding_attention", sliding, f.rope_local_base_freq, c.head_dim)?,
    ];
    for layer in c.layers.iter_mut().filter(|l| l.window.is_some()) {
        layer.rope = Some(1);
    }
    Ok(())
}
