//! Models, tokenizers and adapters that are not what they should be: the error, and the exit code of the program.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use crate::common::edit::Edit;
use crate::common::families::{copy, fixture, open};
use crate::common::tiny::write_text_model;
use mixlora::adapter::{ALL_LINEAR, Adapter, AdapterOptions};
use mixlora::io::GgufFile;
use mixlora::io::gguf::{GgufWriter, Value as Text};
use mixlora::mixture::find;
use mixlora::model::{LoadOptions, Model, ModelFiles};
use mixlora::{Device, Stream};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Runs the program: exit code, stdout, stderr.
fn run(args: &[&str]) -> (i32, String, String) {
    let out =
        Command::new(env!("CARGO_BIN_EXE_mixlora")).env("MIXLORA_DEVICE", "cpu").args(args).output().unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    let stdout = text(out.stdout);
    let stderr = text(out.stderr);
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    (out.status.code().unwrap(), stdout, stderr)
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

/// Generates two tokens.
fn generate(model: &Path, more: &[&str]) -> (i32, String, String) {
    run(&[&["generate", "--model", path(model), "--prompt", "ab", "--max-tokens", "2"], more].concat())
}

fn refused(model: &Path, expected: &[&str]) {
    let (code, out, err) = generate(model, &[]);
    assert_eq!((code, out.as_str()), (3, ""), "{err}");
    for text in expected {
        assert!(err.contains(text), "'{text}' is not in: {err}");
    }
}

/// A tiny model with text, in a folder that is deleted later.
fn tiny() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_text_model(dir.path());
    dir
}

/// Changes config.json.
fn configure(dir: &Path, change: impl Fn(&mut Value)) {
    let path = dir.join("config.json");
    let mut c: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut c);
    std::fs::write(path, c.to_string()).unwrap();
}

/// Changes the weights.
fn weights(dir: &Path, change: impl Fn(Edit) -> Edit) {
    let path = dir.join("model.safetensors");
    let edited = change(Edit::open(&path));
    let views = edited.tensors.iter().map(|(n, (dtype, dims, bytes))| {
        (n.as_str(), safetensors::tensor::TensorView::new(*dtype, dims.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn shapes_name_the_fields_that_give_them() {
    let dir = tiny();
    configure(dir.path(), |c| c["intermediate_size"] = json!(95));
    let e = "tensor 'model.layers.0.mlp.gate_proj.weight' is [96, 64], expected [95, 64] by the configuration \
             (intermediate_size, hidden_size)";
    refused(dir.path(), &[e, "model.safetensors"]);
}

#[test]
fn missing_tensors_are_listed_at_once_and_extra_ones_noted() {
    let dir = tiny();
    let gone =
        ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"];
    weights(dir.path(), |mut e| {
        gone.iter().for_each(|n| drop(e.tensors.remove(*n)));
        e
    });
    refused(dir.path(), &[&["3 tensors are missing"][..], &gone].concat());
    let dir = tiny();
    weights(dir.path(), |mut e| {
        let one = e.tensors["model.norm.weight"].clone();
        e.tensors.insert("visual.extra.weight".into(), one);
        e
    });
    let (code, _, err) = generate(dir.path(), &[]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("note: 1 tensors of the model are not used: visual.extra.weight"), "{err}");
}

#[test]
fn values_that_are_not_finite_are_found() {
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let dir = tiny();
        weights(dir.path(), |e| e.value("model.layers.1.mlp.up_proj.weight", 5, |_| value));
        let place = "tensor 'model.layers.1.mlp.up_proj.weight': the value at row 0, column 5 is";
        refused(dir.path(), &[&format!("{place} {shown}; the file is damaged"), "--allow-nonfinite"]);
        // Taken as it is, the model loads, and what it computes is refused where it is used.
        let (code, _, err) = generate(dir.path(), &["--allow-nonfinite"]);
        assert_eq!(code, 3, "{err}");
        assert!(err.contains(&format!("note: {place} {shown}")), "{err}");
        assert!(
            err.contains("logits") && err.contains("not finite") && !err.contains("badly converted"),
            "{err}"
        );
        let options = LoadOptions { allow_nonfinite: true, ..LoadOptions::default() };
        let files = ModelFiles::open(dir.path()).unwrap();
        assert_eq!(
            Model::load(&files, &Device::cpu(), &options).unwrap().notes(),
            [format!("{place} {shown}")]
        );
    }
    // Loading samples rows and misses row 7 of this tensor; --check scans all rows.
    let dir = tiny();
    weights(dir.path(), |e| e.value("model.layers.1.mlp.up_proj.weight", 7 * 64 + 3, |_| f32::NAN));
    assert!(Model::open(dir.path(), &Device::cpu()).unwrap().notes().is_empty());
    let (code, out, _) = run(&["inspect", path(dir.path()), "--check"]);
    assert_eq!(code, 1, "{out}");
    assert!(
        out.contains("tensor 'model.layers.1.mlp.up_proj.weight': the value at row 7, column 3 is NaN"),
        "{out}"
    );
    let (code, out, _) = run(&["inspect", path(tiny().path()), "--check"]);
    assert_eq!(code, 0, "{out}");
}

#[test]
fn tensors_of_zeros_are_noted() {
    for (value, expected) in [(0f32, "all values are 0"), (1e-41, "below the smallest normal f32")] {
        let dir = tiny();
        let name = "model.layers.0.self_attn.v_proj.weight";
        weights(dir.path(), |mut e| {
            let bytes = &mut e.tensors.get_mut(name).unwrap().2;
            bytes.chunks_mut(4).for_each(|b| b.copy_from_slice(&value.to_le_bytes()));
            e
        });
        let (code, _, err) = generate(dir.path(), &[]);
        assert_eq!(code, 0, "{err}");
        assert!(err.contains(&format!("note: tensor '{name}': ")) && err.contains(expected), "{err}");
    }
}

#[test]
fn pickles_are_refused() {
    let dir = tiny();
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("pytorch_model.bin"), b"PK\x03\x04").unwrap();
    refused(dir.path(), &["pytorch_model.bin: is a pickle file", "safe_serialization=True"]);
}

#[test]
fn configurations_that_cannot_be() {
    let rope = |kind: &str| json!({ "rope_type": kind, "factor": 2.0 });
    let change = |key: &str, value: Value, expected: &str| {
        let dir = tiny();
        configure(dir.path(), |c| c[key] = value.clone());
        refused(dir.path(), &["config.json", expected]);
    };
    change(
        "model_type",
        json!("mamba"),
        "model_type 'mamba' is not supported; supported are llama, mistral, qwen2",
    );
    change("model_type", json!(7), "model_type is 7, expected one of llama, mistral, qwen2");
    change("hidden_size", json!("64"), "at 'hidden_size': invalid type: string \"64\"");
    change("rope_scaling", json!({ "rope_type": "llama3", "factor": "8" }), "at 'rope_scaling.factor'");
    change(
        "rope_scaling",
        json!({ "rope_type": "llama3", "factor": 8 }),
        "rope_scaling.low_freq_factor: is missing",
    );
    change(
        "rope_scaling",
        rope("dynamic"),
        "rope_scaling: of type 'dynamic' is not supported; default, linear, llama3, yarn and longrope are",
    );
    change("rope_parameters", rope("ntk"), "rope_parameters: of type 'ntk' is not supported");
    change("rope_parameters", json!({ "rope_type": "yarn" }), "rope_parameters.factor: is missing");
    change("hidden_act", json!("relu"), "hidden_act: 'relu' is not supported; silu, gelu");
    change(
        "num_key_value_heads",
        json!(3),
        "num_attention_heads: is 4, must be a multiple of num_key_value_heads (3)",
    );
    change("head_dim", json!(0), "head_dim: is 0");
    change("num_hidden_layers", json!(0), "num_hidden_layers: is 0");
    change("vocab_size", json!(1u64 << 31), "vocab_size: is 2147483648");
    let dir = tiny();
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    refused(dir.path(), &["config.json: is missing; a model is a folder with config.json"]);
    std::fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
    refused(dir.path(), &["it is an adapter, not a model"]);
    std::fs::write(dir.path().join("config.json"), "{\"model_type\": ").unwrap();
    refused(dir.path(), &["config.json", "EOF"]);
}

/// The error of a GGUF model with another value of a text.
fn gguf_error(key: &str, text: &str) -> String {
    let base = GgufFile::open(fixture("families/llama2.gguf")).unwrap();
    let mut out = GgufWriter::default();
    base.metadata().iter().filter(|(k, _)| *k != key).for_each(|(k, v)| out.set(k, v.clone()));
    out.set(key, Text::String(text.into()));
    for (name, t) in base.tensors() {
        out.tensor(name.clone(), t.dims.clone(), base.values_f32(name).unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    out.write(&path).unwrap();
    Model::open(&path, &Device::cpu()).err().map(|e| e.to_string()).unwrap_or_default()
}

#[test]
fn gguf_models_that_are_not_computed() {
    for (key, text, expected) in [
        (
            "llama.rope.scaling.type",
            "su",
            "rope scaling of type 'su' (llama.rope.scaling.type) is not supported",
        ),
        ("llama.rope.scaling.type", "linear", "rope_scaling.factor: is missing; rope_type linear needs it"),
        (
            "general.architecture",
            "mamba",
            "architecture 'mamba' is not supported; supported are llama, qwen2",
        ),
        ("general.type", "adapter", "is a GGUF adapter, not a model"),
    ] {
        let e = gguf_error(key, text);
        assert!(e.contains(expected) && e.contains("m.gguf"), "{e}");
    }
    assert_eq!(gguf_error("llama.rope.scaling.type", "none"), "");
    assert_eq!(gguf_error("general.name", "any"), "");
}

#[test]
fn tokenizers_that_do_not_fit() {
    let dir = tiny();
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    refused(dir.path(), &["there is no tokenizer.json in this folder"]);
    std::fs::write(dir.path().join("tokenizer.json"), "{\"version\":").unwrap();
    refused(dir.path(), &["tokenizer.json: not a usable tokenizer.json"]);
    let dir = tiny();
    configure(dir.path(), |c| c["vocab_size"] = json!(200));
    weights(dir.path(), |mut e| {
        let embed = e.tensors.get_mut("model.embed_tokens.weight").unwrap();
        embed.1 = vec![200, 64];
        embed.2.truncate(200 * 64 * 4);
        e
    });
    refused(
        dir.path(),
        &["has 259 tokens, but the embedding has 200 rows; is it the tokenizer of this model?"],
    );
}

/// An adapter of a method on a model, saved.
fn adapter_on(model: &Model, method: &str, dir: &Path) {
    let method = find(method).unwrap().defaults().with("r", 2).unwrap();
    let targets = vec![ALL_LINEAR.to_string()];
    let adapter = Adapter::attach(model, &method, &targets, Stream::new(1)).unwrap();
    adapter.save(dir, model, "the-right-base").unwrap();
}

#[test]
fn adapters_of_another_base_are_refused_by_name() {
    let model = tiny();
    let other = tiny();
    let adapter = tempfile::tempdir().unwrap();
    weights(other.path(), |e| e.value("model.layers.0.input_layernorm.weight", 0, |v| v + 0.5));
    let cpu = Device::cpu();
    for method in ["lora", "mixlora-cond"] {
        adapter_on(&Model::open(model.path(), &cpu).unwrap(), method, adapter.path());
        let with = ["--adapter", path(adapter.path())];
        assert_eq!(generate(model.path(), &with).0, 0);
        let (code, _, err) = generate(other.path(), &with);
        assert_eq!(code, 3, "{err}");
        assert!(err.contains("mixlora.json: was trained on 'the-right-base', but this is"), "{err}");
        assert!(err.contains(path(other.path())) && err.contains("--force uses it all the same"), "{err}");
        assert_eq!(generate(other.path(), &[&with[..], &["--force"]].concat()).0, 0);
        // Other sizes: the shapes do not fit, whatever is forced.
        let force = AdapterOptions { force: true, ..AdapterOptions::default() };
        let model = open("llama2");
        let e = Adapter::load(adapter.path(), &model).err().unwrap().to_string();
        assert!(e.contains("hidden_size 64 there and 32 here"), "{e}");
        let e = Adapter::load_with(adapter.path(), &model, &force);
        let e = e.err().unwrap().to_string();
        assert!(e.contains("has shape") && e.contains("expected"), "{e}");
    }
}

#[test]
fn transposed_and_swapped_factors_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("lora");
    let file = place.join("adapter_model.safetensors");
    let attempt = |change: &dyn Fn(&mut Edit)| {
        copy(&fixture("peft/lora"), &place);
        std::fs::remove_file(place.join("logits.safetensors")).unwrap();
        let mut e = Edit::open(&file);
        change(&mut e);
        let views = e.tensors.iter().map(|(n, (dtype, dims, bytes))| {
            (n.as_str(), safetensors::tensor::TensorView::new(*dtype, dims.clone(), bytes).unwrap())
        });
        std::fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
        Adapter::load(&place, &open("llama2")).err().map(|e| e.to_string())
    };
    assert_eq!(attempt(&|_| ()), None);
    let e = attempt(&|e| e.tensors.values_mut().for_each(|t| t.1.reverse())).unwrap();
    assert!(e.contains("the factors are transposed (as MLX writes them), or A and B are swapped"), "{e}");
    let swap = |e: &mut Edit| {
        let turned = |n: &String| match n.contains("lora_A") {
            true => n.replace("lora_A", "lora_B"),
            false => n.replace("lora_B", "lora_A"),
        };
        e.tensors = e.tensors.iter().map(|(n, t)| (turned(n), t.clone())).collect();
    };
    let e = attempt(&swap).unwrap();
    assert!(e.contains("A and B are swapped") || e.contains("has shape"), "{e}");
    let mlx = |e: &mut Edit| {
        let short = |n: &String| n.replace("base_model.model.", "").replace("lora_A.weight", "lora_a");
        e.tensors = e.tensors.iter().map(|(n, t)| (short(n), t.clone())).collect();
    };
    let e = attempt(&mlx).unwrap();
    assert!(e.contains("has a name of MLX, whose factors are transposed"), "{e}");
    std::fs::rename(&file, place.join("adapters.safetensors")).unwrap();
    let e = Adapter::load(&place, &open("llama2")).err().unwrap().to_string();
    assert!(e.contains("is MLX's format"), "{e}");
    std::fs::rename(place.join("adapters.safetensors"), place.join("adapter_model.bin")).unwrap();
    let e = Adapter::load(&place, &open("llama2")).err().unwrap().to_string();
    assert!(e.contains("adapter_model.bin: is a pickle file") && e.contains("save_file"), "{e}");
}

#[test]
fn merging_and_exporting_refuse_what_depends_on_the_input() {
    let model = tiny();
    let dir = tempfile::tempdir().unwrap();
    let adapter = dir.path().join("a");
    let out = dir.path().join("merged");
    let open = || Model::open(model.path(), &Device::cpu()).unwrap();
    adapter_on(&open(), "mixlora-cond", &adapter);
    let merge = |out: &Path| {
        run(&["merge", "--model", path(model.path()), "--adapter", path(&adapter), "--out", path(out)])
    };
    let (code, _, err) = merge(&out);
    assert_eq!(code, 3, "{err}");
    assert!(
        err.contains("mixlora-cond chooses its factors by the input") && err.contains("--method lora"),
        "{err}"
    );
    let gguf = dir.path().join("a.gguf");
    let export = || {
        run(&[
            "export",
            "--model",
            path(model.path()),
            "--adapter",
            path(&adapter),
            "--gguf-lora",
            path(&gguf),
        ])
    };
    let (code, _, err) = export();
    assert_eq!(code, 3, "{err}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    // A LoRA can; but not over anything.
    adapter_on(&open(), "lora", &adapter);
    let (code, _, err) = merge(model.path());
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("never over another"), "{err}");
    assert_eq!(merge(&out).0, 0);
    assert_eq!(merge(&out).0, 3);
    assert_eq!(generate(&out, &[]).0, 0, "the merged model has all it needs");
    assert_eq!(export().0, 0);
    assert_eq!(export().0, 3, "the file exists");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn inspect_says_what_things_are() {
    let json = |p: &Path| -> Value {
        let (code, out, err) = run(&["inspect", path(p), "--json", "--tensors"]);
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    };
    let model = tiny();
    let v = json(model.path());
    assert_eq!((&v["kind"], &v["chat template"]), (&json!("Hugging Face model"), &json!(true)));
    assert_eq!((&v["configuration"]["hidden_size"], &v["list"][0]["format"]), (&json!(64), &json!("f32")));
    assert_eq!(v["values"], v["parameters"]);
    let v = json(&fixture("families/llama3.gguf"));
    assert_eq!((&v["kind"], &v["general.architecture"]), (&json!("GGUF file"), &json!("llama")));
    assert_eq!(v["configuration"]["attention_bias"], json!(true));
    let v = json(&fixture("peft/lora"));
    assert_eq!((&v["kind"], &v["adapter_config.json"]["r"]), (&json!("adapter"), &json!(4)));
    let v = json(&fixture("peft/ours"));
    assert_eq!((&v["mixlora.json"]["method"], &v["tensors"]), (&json!("lora"), &json!(28)));
    let empty = tempfile::tempdir().unwrap();
    let (code, _, err) = run(&["inspect", path(empty.path())]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("holds neither a model (config.json) nor an adapter"), "{err}");
}
