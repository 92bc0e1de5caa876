//! The configuration of a decoder from the metadata of a GGUF file.

use super::{ModelConfig, RopeScaling};
use crate::io::GgufFile;
use crate::{Error, Result};

/// Architectures of GGUF files that the decoder computes; Mistral's files say llama.
const SUPPORTED: [&str; 2] = ["llama", "qwen2"];

pub(super) fn read(file: &GgufFile) -> Result<ModelConfig> {
    let fail = |what: String| Err(Error::file(file.path(), what));
    if file.str("general.type") == Ok("adapter") {
        return fail("is a GGUF adapter, not a model".into());
    }
    let arch = file.str("general.architecture")?.to_string();
    if !SUPPORTED.contains(&arch.as_str()) {
        return fail(format!(
            "architecture '{arch}' is not supported; supported are {}",
            SUPPORTED.join(", ")
        ));
    }
    let key = |name: &str| format!("{arch}.{name}");
    let size = |name: &str| file.u32(&key(name)).map(|v| v as usize);
    let optional = |name: &str| file.get(&key(name)).map(|_| size(name)).transpose();
    if let Some(n) = optional("expert_count")?.filter(|&n| n > 0) {
        return fail(format!(
            "has {n} experts in each MLP ({}), which is not supported",
            key("expert_count")
        ));
    }
    let heads = size("attention.head_count")?;
    let hidden_size = size("embedding_length")?;
    let head_dim = match optional("attention.key_length")? {
        Some(n) => n,
        None => optional("rope.dimension_count")?.unwrap_or(hidden_size / heads.max(1)),
    };
    let has = |name: &str| file.tensors().contains_key(name);
    ModelConfig {
        hidden_size,
        intermediate_size: size("feed_forward_length")?,
        num_hidden_layers: size("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: optional("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        vocab_size: file.tensor("token_embd.weight")?.rows(),
        max_position_embeddings: size("context_length")?,
        sliding_window: optional("attention.sliding_window")?.filter(|&w| w > 0),
        rms_norm_eps: file.f32(&key("attention.layer_norm_rms_epsilon"))?,
        rope_theta: match file.get(&key("rope.freq_base")) {
            Some(_) => file.f32(&key("rope.freq_base"))? as f64,
            None => 10_000.0,
        },
        rope_scaling: rope_scaling(file, &arch, head_dim)?,
        tie_word_embeddings: !has("output.weight"),
        attention_bias: has("blk.0.attn_q.bias"),
        o_proj_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_down.bias"),
        model_type: arch,
    }
    .check()
    .map_err(|e| Error::file(file.path(), e.to_string()))
}

/// Factors of the frequencies, where a file has them; kinds of scaling that are not computed are refused.
fn rope_scaling(file: &GgufFile, arch: &str, head_dim: usize) -> Result<Option<RopeScaling>> {
    let kind_key = format!("{arch}.rope.scaling.type");
    // Without a type, llama.cpp scales linearly by these.
    let linear = [format!("{arch}.rope.scaling.factor"), format!("{arch}.rope.scale_linear")];
    let kind = match file.get(&kind_key) {
        Some(_) => file.str(&kind_key)?,
        None => match linear.iter().find(|k| file.f32(k).is_ok_and(|f| f != 0.0 && f != 1.0)) {
            Some(_) => "linear",
            None => "none",
        },
    };
    if kind != "none" {
        let what =
            format!("rope scaling of type '{kind}' ({kind_key}) is not supported; llama3's factors are");
        return Err(Error::file(file.path(), what));
    }
    if !file.tensors().contains_key("rope_freqs.weight") {
        return Ok(None);
    }
    let factors = file.values_f32("rope_freqs.weight")?;
    let good = |f: &f32| f.is_finite() && *f > 0.0;
    match factors.len() == head_dim / 2 && factors.iter().all(good) {
        true => Ok(Some(RopeScaling::Factors(factors))),
        false => {
            let what = format!(
                "tensor 'rope_freqs.weight' has {} values, expected {} positive ones (half of head_dim)",
                factors.len(),
                head_dim / 2
            );
            Err(Error::file(file.path(), what))
        }
    }
}
