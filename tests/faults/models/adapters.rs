//! Adapters: their base in other files, settings of PEFT, options that claim more than the tensors.

use super::{change, generate, open, reweigh, tiny};
use crate::common::cli::{mixlora, output};
use crate::common::families::{copy, fixture};
use half::{bf16, f16};
use mixlora::Stream;
use mixlora::adapter::{ALL_LINEAR, Adapter, AdapterOptions};
use mixlora::io::gguf::{GgufWriter, Value as Entry};
use mixlora::model::{Model, ModelFiles, gguf_name, gguf_row};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::path::Path;

fn targets() -> Vec<String> {
    vec![ALL_LINEAR.to_string()]
}

/// Saves a fresh adapter for a model.
fn save(method: &str, model: &Model, dir: &Path) {
    let method = crate::common::method(method, json!({ "r": 2, "top_k": 1 }));
    let adapter = Adapter::attach(model, &method, &targets(), Stream::new(1)).unwrap();
    adapter.save(dir, model, "base").unwrap();
}

/// Stores every tensor of a folder's weights in 16 bits.
fn store_as(dir: &Path, dtype: Dtype) {
    let bits = |v: f32| match dtype {
        Dtype::F16 => f16::from_f32(v).to_bits(),
        _ => bf16::from_f32(v).to_bits(),
    };
    reweigh(dir, |mut e| {
        for t in e.tensors.values_mut() {
            let values = t.2.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            *t = (dtype, t.1.clone(), values.flat_map(|v| bits(v).to_le_bytes()).collect());
        }
        e
    });
}

/// A tiny model whose norms need all bits of an f32.
fn with_norms(seed: u64) -> tempfile::TempDir {
    let dir = tiny();
    reweigh(dir.path(), |mut e| {
        for (name, t) in e.tensors.iter_mut().filter(|(name, _)| name.contains("norm")) {
            let values = Stream::new(seed).named(name).normal_vec(t.2.len() / 4, 0.1);
            t.2 = values.iter().flat_map(|v| (1.0 + v).to_le_bytes()).collect();
        }
        e
    });
    dir
}

/// The same model as a GGUF file of f32 tensors.
fn write_gguf(dir: &Path, path: &Path) {
    let files = ModelFiles::open(dir).unwrap();
    let c = files.config();
    let mut out = GgufWriter::default();
    out.set("general.architecture", Entry::String("llama".into()));
    for (key, value) in [
        ("block_count", c.num_hidden_layers),
        ("context_length", c.max_position_embeddings),
        ("embedding_length", c.hidden_size),
        ("feed_forward_length", c.intermediate_size),
        ("attention.head_count", c.num_attention_heads),
        ("attention.head_count_kv", c.num_key_value_heads),
    ] {
        out.set(&format!("llama.{key}"), Entry::U32(value as u32));
    }
    out.set("llama.attention.layer_norm_rms_epsilon", Entry::F32(c.norm.eps));
    for e in files.expected() {
        let values = files.values(&e.name).unwrap();
        let dims: Vec<usize> = e.axes.iter().rev().map(|a| a.0).collect();
        let cols = dims[0];
        let rows = values.len() / cols;
        let ordered = (0..rows).flat_map(|i| values[gguf_row(c, &e.name, i) * cols..][..cols].to_vec());
        let ordered = if e.axes.len() > 1 { ordered.collect() } else { values.clone() };
        out.tensor(gguf_name(&e.name), dims, ordered);
    }
    out.write(path).unwrap();
}

#[test]
fn adapter_on_f16_copy() {
    let full = with_norms(3);
    let halves = [Dtype::F16, Dtype::BF16].map(|dtype| {
        let dir = with_norms(3);
        store_as(dir.path(), dtype);
        dir
    });
    let gguf = full.path().join("m.gguf");
    write_gguf(halves[0].path(), &gguf);
    let copies = [full.path(), halves[0].path(), halves[1].path(), &gguf];
    let others = [with_norms(4), with_norms(4)];
    store_as(others[1].path(), Dtype::F16);
    let one_value = with_norms(3);
    reweigh(one_value.path(), |e| e.value("model.norm.weight", 5, |v| v + 0.01));
    let adapter = tempfile::tempdir().unwrap();
    for trained_on in copies {
        save("lora", &open(trained_on), adapter.path());
        for copy in copies {
            let loaded = Adapter::load(adapter.path(), &open(copy));
            assert!(loaded.is_ok(), "{} on {}: {:?}", trained_on.display(), copy.display(), loaded.err());
        }
        for other in &others {
            let e = Adapter::load(adapter.path(), &open(other.path())).err().unwrap().to_string();
            assert!(e.contains("the weights are not; --force uses it all the same"), "{e}");
            let force = AdapterOptions { force: true, ..AdapterOptions::default() };
            assert!(Adapter::load_with(adapter.path(), &open(other.path()), &force).is_ok());
        }
    }
    save("lora", &open(full.path()), adapter.path());
    assert!(Adapter::load(adapter.path(), &open(one_value.path())).is_err());
    // Adapters of earlier versions have the checksum alone.
    let own = adapter.path().join("mixlora.json");
    change(&own, |c| c["base"]["norms"] = json!(c["base"]["norms"].as_str().unwrap()[..8]));
    assert!(Adapter::load(adapter.path(), &open(full.path())).is_ok());
    assert!(Adapter::load(adapter.path(), &open(halves[1].path())).is_ok());
    assert!(Adapter::load(adapter.path(), &open(others[0].path())).is_err());
    change(&own, |c| c["base"]["norms"] = json!("no checksum"));
    let e = Adapter::load(adapter.path(), &open(full.path())).err().unwrap().to_string();
    assert!(e.contains("mixlora.json: at 'base.norms': norms: is no fingerprint"), "{e}");
}

#[test]
fn peft_eva() {
    let dir = tempfile::tempdir().unwrap();
    copy(&fixture("peft/lora"), dir.path());
    let config = dir.path().join("adapter_config.json");
    let attempt = |start: Value, settings: Value| {
        change(&config, |c| {
            c["init_lora_weights"] = start.clone();
            settings.as_object().unwrap().iter().for_each(|(key, value)| c[key] = value.clone());
        });
        let loaded = Adapter::load(dir.path(), &crate::common::families::open("llama2"));
        copy(&fixture("peft/lora"), dir.path());
        loaded.err().map(|e| e.to_string())
    };
    let eva = json!({ "eva_config": { "rho": 1.0, "tau": 0.99, "whiten": false } });
    assert_eq!(attempt(json!("eva"), eva.clone()), None);
    for start in [json!(true), json!(false), json!("gaussian"), json!("Gaussian"), json!("orthogonal")] {
        // Settings of a start that was not chosen.
        let settings = json!({
            "eva_config": eva["eva_config"], "loftq_config": { "loftq_bits": 4 }, "corda_config": { "corda_method": "kpm" },
            "lora_ga_config": { "direction": "ArB2r" },
        });
        assert_eq!(attempt(start.clone(), settings), None, "{start}");
    }
    for start in ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"] {
        let e = attempt(json!(start), json!({})).unwrap();
        let expected = format!("init_lora_weights = \"{start}\" (a start that changes the base model");
        assert!(e.contains(&expected) && e.contains("path_initial_model_for_weight_conversion"), "{e}");
    }
    let e = attempt(json!(true), json!({ "unheard_of": { "a": 1 } })).unwrap();
    assert!(e.contains("unheard_of = {\"a\":1}"), "{e}");
}

#[test]
fn adapter_claims_factors() {
    let model = tiny();
    let adapter = tempfile::tempdir().unwrap();
    let claims = [
        ("lora", "r", 20u64, "[2, 64], expected [20, 64]"),
        ("lora", "r", 60, "r: is 60, must be in 1..=32"),
        ("mixlora-cond", "num_factors", 2_000_000, "expected [2000000, "),
        ("mixlora-cond", "num_factors", 1 << 60, "1152921504606846976"),
        ("mixlora-cond", "r", 16, "has shape [32, 64], expected [256, 64]"),
        ("mixlora-ffn", "num_experts", 1 << 40, "1099511627776"),
        ("rank-wise", "r", 1 << 50, "expected at most 4294967295 elements"),
        ("flylora", "r", 1 << 50, "expected at most 4294967295 elements"),
        ("smora", "r", 1 << 50, "expected at most 4294967295 elements"),
    ];
    for (method, option, claimed, expected) in claims {
        save(method, &open(model.path()), adapter.path());
        change(&adapter.path().join("mixlora.json"), |c| c["options"][option] = json!(claimed));
        let (_, err) = generate(model.path(), &["--adapter", adapter.path().to_str().unwrap()], 3);
        assert!(err.contains(expected), "{method} {option}: {err}");
    }
    // PEFT's own files claim as well.
    let adapter = tempfile::tempdir().unwrap();
    copy(&fixture("peft/lora"), adapter.path());
    change(&adapter.path().join("adapter_config.json"), |c| c["r"] = json!(1u64 << 40));
    let family = fixture("families/llama2");
    let e = Adapter::load(adapter.path(), &open(&family)).err().unwrap().to_string();
    assert!(e.contains("r: is 1099511627776, must be in 1..=32"), "{e}");
}

#[test]
fn a_run_takes_a_file_of_the_model() {
    let model = tiny();
    let place = tempfile::tempdir().unwrap();
    crate::common::tiny::write_data(place.path(), 4);
    let text = |path: &Path| path.to_str().unwrap().to_string();
    let run = text(&place.path().join("run"));
    // A file of the model's folder stands for it, in a run as elsewhere.
    let file = text(&model.path().join("config.json"));
    let data = text(place.path());
    let args = [
        "train", "--model", &file, "--data", &data, "--out", &run, "--steps", "1", "--method", "lora",
        "--quiet",
    ];
    output(mixlora(&args), 0);
    generate(model.path(), &["--adapter", &run], 0);
}
