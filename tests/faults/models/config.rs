//! Configurations: fields by other names, values that cannot be.

use super::{change, generate, open, refused, reweigh, tiny};
use crate::common::families::logits;
use mixlora::Device;
use mixlora::io::GgufFile;
use mixlora::io::gguf::{GgufWriter, Value as Entry};
use mixlora::model::{Model, ModelFiles, model_config};
use serde_json::{Value, json};

const LONG: [u32; 40] = [7; 40];

/// Logits of the tiny model with some fields changed.
fn with(fields: &Value) -> Vec<f32> {
    let dir = tiny();
    change(&dir.path().join("config.json"), |c| {
        fields.as_object().unwrap().iter().for_each(|(key, value)| c[key] = value.clone());
    });
    logits(&open(dir.path()), &LONG).unwrap()
}

fn llama3(names: &[&str]) -> Value {
    let mut table = json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    });
    names.iter().for_each(|name| table[*name] = json!("llama3"));
    table
}

#[test]
fn rope_type_twice() {
    let plain = with(&json!({}));
    let scaled = with(&json!({ "rope_scaling": llama3(&["rope_type"]) }));
    assert_ne!(plain, scaled);
    for names in [&["rope_type", "type"][..], &["type"]] {
        assert_eq!(with(&json!({ "rope_scaling": llama3(names) })), scaled, "{names:?}");
        assert_eq!(with(&json!({ "rope_parameters": llama3(names) })), scaled, "{names:?}");
    }
    // Where they disagree, the newer name counts.
    let mut both = llama3(&["rope_type"]);
    both["type"] = json!("linear");
    assert_eq!(with(&json!({ "rope_scaling": both })), scaled);
    both["rope_type"] = json!(null);
    let dir = tiny();
    change(&dir.path().join("config.json"), |c| c["rope_scaling"] = both.clone());
    let linear = logits(&open(dir.path()), &LONG).unwrap();
    assert!(linear != scaled && linear != plain);
    change(&dir.path().join("config.json"), |c| c["rope_scaling"]["type"] = json!("dynamic"));
    refused(dir.path(), &["config.json", "rope_scaling: of type 'dynamic' is not supported"]);
}

#[test]
fn fields_of_newer_transformers() {
    let plain = with(&json!({}));
    let other_base = with(&json!({ "rope_theta": 500.0 }));
    assert_ne!(plain, other_base);
    for table in ["rope_parameters", "rope_scaling"] {
        let fields = json!({ table: { "rope_type": "default", "rope_theta": 500.0 } });
        assert_eq!(with(&fields), other_base, "{table}");
    }
    let nulls = json!({
        "head_dim": null, "num_key_value_heads": null, "rope_scaling": null, "rope_parameters": null,
        "tie_word_embeddings": true, "attention_bias": null, "mlp_bias": null, "sliding_window": null,
        "use_sliding_window": null, "max_window_layers": null, "layer_types": null, "hidden_act": null,
        "quantization_config": null, "partial_rotary_factor": null, "dtype": "float32", "torch_dtype": null,
    });
    let dir = tiny();
    change(&dir.path().join("config.json"), |c| {
        nulls.as_object().unwrap().iter().for_each(|(key, value)| c[key] = value.clone());
    });
    // As many key heads as heads: the shapes of the file tell.
    refused(dir.path(), &["k_proj.weight' is [32, 64], expected [64, 64]"]);
    change(&dir.path().join("config.json"), |c| c["num_key_value_heads"] = json!(2));
    assert_eq!(logits(&open(dir.path()), &LONG).unwrap(), plain);
    let no_ties = json!({ "tie_word_embeddings": null });
    change(&dir.path().join("config.json"), |c| {
        c["tie_word_embeddings"] = no_ties["tie_word_embeddings"].clone()
    });
    refused(dir.path(), &["1 tensors are missing: 'lm_head.weight'"]);
    for (field, value, expected) in [
        ("partial_rotary_factor", json!(1.5), "partial_rotary_factor: is 1.5, must be in (0, 1]"),
        ("layer_types", json!(["full_attention", "linear_attention"]), "layer_types: has 'linear_attention'"),
        (
            "rope_parameters",
            json!({ "full_attention": {}, "sliding_attention": {} }),
            "a table for each kind of layer",
        ),
    ] {
        let dir = tiny();
        change(&dir.path().join("config.json"), |c| c[field] = value.clone());
        refused(dir.path(), &["config.json", expected]);
    }
}

/// The window of a configuration of Qwen2 with some fields changed.
fn window(fields: Value) -> Option<usize> {
    let dir = tiny();
    change(&dir.path().join("config.json"), |c| {
        c["model_type"] = json!("qwen2");
        c["sliding_window"] = json!(8);
        fields.as_object().unwrap().iter().for_each(|(key, value)| c[key] = value.clone());
    });
    model_config(dir.path()).unwrap().layers.iter().find_map(|l| l.window)
}

#[test]
fn windows_of_some_layers() {
    assert_eq!(window(json!({})), None);
    assert_eq!(window(json!({ "use_sliding_window": true })), None, "from layer 28 on, where it is not said");
    assert_eq!(window(json!({ "use_sliding_window": true, "max_window_layers": 1 })), Some(8));
    assert_eq!(window(json!({ "use_sliding_window": true, "max_window_layers": 2 })), None);
    assert_eq!(window(json!({ "use_sliding_window": false, "max_window_layers": 0 })), None);
    let kinds = |kind: &str| json!({ "use_sliding_window": true, "max_window_layers": 0, "layer_types": [kind, kind] });
    assert_eq!(window(kinds("full_attention")), None);
    assert_eq!(window(kinds("sliding_attention")), Some(8));
}

#[test]
fn sliding_window_of_zero() {
    let dir = tiny();
    change(&dir.path().join("config.json"), |c| {
        c["model_type"] = json!("mistral");
        c["sliding_window"] = json!(0);
    });
    refused(dir.path(), &["config.json: sliding_window: is 0, must be at least 1, or null for none"]);
    // Where the window does not count, neither does its length.
    change(&dir.path().join("config.json"), |c| c["model_type"] = json!("llama"));
    generate(dir.path(), &[], 0);
    change(&dir.path().join("config.json"), |c| c["max_position_embeddings"] = json!(0));
    refused(dir.path(), &["config.json: max_position_embeddings: is 0"]);
}

#[test]
fn config_layers() {
    let dir = tiny();
    for layers in [5u64, 1_000_000] {
        change(&dir.path().join("config.json"), |c| c["num_hidden_layers"] = json!(layers));
        let expected =
            format!("num_hidden_layers is {layers} in the configuration, but there are 20 tensors");
        refused(dir.path(), &["model.safetensors", &expected]);
    }
    // No list is made of so many.
    change(&dir.path().join("config.json"), |c| c["num_hidden_layers"] = json!(200_000_000u64));
    refused(dir.path(), &["config.json", "num_hidden_layers: is 200000000, must be in 1..1048576"]);
    // GGUF files say it in an entry.
    let base = GgufFile::open(crate::common::families::fixture("families/llama2.gguf")).unwrap();
    let mut out = GgufWriter::default();
    base.metadata().iter().for_each(|(key, value)| match key.as_str() {
        "llama.block_count" => out.set(key, Entry::U32(1_000_000)),
        _ => out.set(key, value.clone()),
    });
    for (name, t) in base.tensors() {
        out.tensor(name.clone(), t.dims.clone(), base.values_f32(name).unwrap());
    }
    let path = dir.path().join("m.gguf");
    out.write(&path).unwrap();
    let e = ModelFiles::open(&path).unwrap_err().to_string();
    assert!(e.contains("m.gguf: num_hidden_layers is 1000000 in the configuration"), "{e}");
    // Sizes of which even the number of parameters is no number are no panic.
    change(&dir.path().join("config.json"), |c| {
        [
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
        ]
        .iter()
        .for_each(|field| c[*field] = json!((1u64 << 28) - 1));
        c["head_dim"] = json!(256);
    });
    let inspect = ["inspect", dir.path().to_str().unwrap()];
    crate::common::cli::output(crate::common::cli::mixlora(&inspect), 0);
}

#[test]
fn config_positions() {
    let right = logits(&open(tiny().path()), &LONG).unwrap();
    for positions in [1 << 25, (1 << 28) - 1] {
        let dir = tiny();
        change(&dir.path().join("config.json"), |c| c["max_position_embeddings"] = json!(positions));
        // A table of all positions would be 32 GiB, or more than a tensor can have.
        let device = Device::cpu();
        device.memory().unwrap().set_budget(64 << 20);
        let model = Model::open(dir.path(), &device).unwrap();
        assert_eq!(logits(&model, &LONG).unwrap(), right);
    }
    // The table grows with the sequence, and its values are those of a table made at once.
    let model = open(tiny().path());
    let long: Vec<u32> = (0..400).map(|i| i % 250).collect();
    logits(&model, &LONG).unwrap();
    let grown = logits(&model, &long).unwrap();
    assert_eq!(grown, logits(&open(tiny().path()), &long).unwrap());
    let e = logits(&model, &[1; 513]).unwrap_err().to_string();
    assert!(e.contains("expected at most 512 positions, which the model has, found 513"), "{e}");
}

#[test]
fn three_axes_pass_for_two() {
    let name = "model.layers.0.mlp.gate_proj.weight";
    for dims in [[1, 96, 64], [2, 48, 64]] {
        let dir = tiny();
        reweigh(dir.path(), |e| e.retype(name, safetensors::Dtype::F32, &dims));
        let expected = format!("tensor '{name}' is {dims:?}, expected [96, 64] by the configuration");
        refused(dir.path(), &[&expected]);
    }
    let dir = tiny();
    reweigh(dir.path(), |e| e.retype("model.norm.weight", safetensors::Dtype::F32, &[1, 64]));
    refused(dir.path(), &["tensor 'model.norm.weight' is [1, 64], expected [64]"]);
}
