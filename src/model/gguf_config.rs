//! The configuration of a decoder from the metadata of a GGUF file.

use super::ModelConfig;
use super::describe::describe;
use super::families::{Facts, of_architecture};
use crate::io::GgufFile;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Entries that are whole numbers, with their names in `config.json`.
const SIZES: [(&str, &str); 12] = [
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("context_length", "max_position_embeddings"),
    ("attention.sliding_window", "sliding_window"),
    ("expert_count", "num_experts"),
    ("expert_used_count", "num_experts_per_tok"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
];
/// The first ones, without which there is no model.
const NEEDED: [&str; 5] =
    ["embedding_length", "feed_forward_length", "block_count", "attention.head_count", "context_length"];
/// Entries that are numbers.
const NUMBERS: [(&str, &str); 11] = [
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.layer_norm_epsilon", "layer_norm_eps"),
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_local_base_freq"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("embedding_scale", "embedding_multiplier"),
    ("attention.scale", "attention_multiplier"),
    ("residual_scale", "residual_multiplier"),
    // Granite divides by it, Cohere multiplies: each reads its own name.
    ("logit_scale", "logits_scaling"),
    ("logit_scale", "logit_scale"),
];

pub(super) fn read(file: &GgufFile) -> Result<ModelConfig> {
    let fail = |what: String| Error::file(file.path(), what);
    if file.str("general.type") == Ok("adapter") {
        return Err(fail("is a GGUF adapter, not a model".into()));
    }
    let arch = file.str("general.architecture")?.to_string();
    let family = of_architecture(&arch).map_err(fail)?;
    let facts = facts(file, &arch)?;
    let read = |source: &Value| Facts::deserialize(source).map(|f| Facts { gguf: true, ..f });
    let read = read(&facts).map_err(|error| fail(error.to_string()))?;
    describe(family, &arch, &read, facts).map_err(|error| fail(error.to_string()))
}

/// What the file says, with the names of `config.json`.
fn facts(file: &GgufFile, arch: &str) -> Result<Value> {
    let mut all = Map::new();
    let key = |name: &str| format!("{arch}.{name}");
    for (theirs, ours) in SIZES {
        if file.get(&key(theirs)).is_some() || NEEDED.contains(&theirs) {
            let n = file.u32(&key(theirs))?;
            // A window of 0 and no experts are none.
            if n > 0 || NEEDED.contains(&theirs) {
                all.insert(ours.into(), n.into());
            }
        }
    }
    for (theirs, ours) in NUMBERS {
        if file.get(&key(theirs)).is_some() {
            all.insert(ours.into(), json!(file.f32(&key(theirs))?));
        }
    }
    let layer_norm = all.contains_key("layer_norm_eps");
    if !layer_norm && !all.contains_key("rms_norm_eps") {
        file.f32(&key("attention.layer_norm_rms_epsilon"))?;
    }
    let has = |name: &str| file.tensors().contains_key(name);
    all.insert("vocab_size".into(), file.tensor("token_embd.weight")?.rows().into());
    all.insert("tie_word_embeddings".into(), (!has("output.weight")).into());
    all.insert("attention_bias".into(), has("blk.0.attn_q.bias").into());
    all.insert("o_proj_bias".into(), has("blk.0.attn_output.bias").into());
    all.insert("mlp_bias".into(), has("blk.0.ffn_down.bias").into());
    let size = |name: &str| all.get(name).and_then(Value::as_u64).unwrap_or(0);
    let heads = size("num_attention_heads").max(1);
    let plain = size("hidden_size") / heads;
    let turned = match file.get(&key("rope.dimension_count")) {
        Some(_) => Some(file.u32(&key("rope.dimension_count"))? as u64),
        None => None,
    };
    let head_dim = match all.get("head_dim").and_then(Value::as_u64) {
        Some(n) => n,
        // Where only a part of a head turns, its length is not that part.
        None => turned.filter(|&n| n > plain).unwrap_or(plain),
    };
    all.insert("head_dim".into(), head_dim.into());
    if let Some(turned) = turned.filter(|&n| n > 0 && n < head_dim) {
        all.insert("partial_rotary_factor".into(), json!(turned as f64 / head_dim as f64));
    }
    if let Some(rope) = rope_scaling(file, arch)? {
        all.insert("rope_scaling".into(), rope);
    }
    Ok(Value::Object(all))
}

/// The scaling of frequencies, where a file has one.
fn rope_scaling(file: &GgufFile, arch: &str) -> Result<Option<Value>> {
    let key = |name: &str| format!("{arch}.rope.{name}");
    let number = |name: &str| file.get(&key(name)).map(|_| file.f32(&key(name))).transpose();
    let table = |name: &str| -> Result<Option<Vec<f32>>> {
        if !file.tensors().contains_key(name) {
            return Ok(None);
        }
        let factors = file.values_f32(name)?;
        if factors.iter().all(|f| f.is_finite() && *f > 0.0) {
            return Ok(Some(factors));
        }
        let what = format!("tensor '{name}' has values that are not positive numbers");
        Err(Error::file(file.path(), what))
    };
    let original = match file.get(&key("scaling.original_context_length")) {
        Some(_) => Some(file.u32(&key("scaling.original_context_length"))?),
        None => None,
    };
    if let (Some(short), Some(long)) =
        (table("rope_factors_short.weight")?, table("rope_factors_long.weight")?)
    {
        return Ok(Some(json!({
            "rope_type": "longrope", "short_factor": short, "long_factor": long,
            "original_max_position_embeddings": original, "attention_factor": number("scaling.attn_factor")?,
        })));
    }
    // Without a type, llama.cpp scales linearly by these.
    let factor = number("scaling.factor")?.or(number("scale_linear")?).filter(|f| *f != 0.0 && *f != 1.0);
    let kind = match file.get(&key("scaling.type")) {
        Some(_) => file.str(&key("scaling.type"))?,
        None if factor.is_some() => "linear",
        None => "none",
    };
    let scaling = match kind {
        "none" => {
            table("rope_freqs.weight")?.map(|factors| json!({ "rope_type": "factors", "factors": factors }))
        }
        "linear" => Some(json!({ "rope_type": "linear", "factor": factor })),
        "yarn" => Some(json!({
            "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
            "beta_fast": number("scaling.yarn_beta_fast")?, "beta_slow": number("scaling.yarn_beta_slow")?,
        })),
        other => {
            let what = format!("rope scaling of type '{other}' ({}) is not supported", key("scaling.type"));
            return Err(Error::file(file.path(), what));
        }
    };
    Ok(scaling)
}
