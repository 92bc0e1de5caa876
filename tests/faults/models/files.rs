//! Which files a path stands for, and what is in them instead of a model.

use super::{change, generate, open, refused, reweigh, tiny};
use crate::common::cli::{mixlora, output};
use crate::common::edit::Edit;
use crate::common::families::{copy, fixture, logits, stored};
use mixlora::io::gguf::{GgufWriter, Value};
use mixlora::io::{Checkpoint, GgufFile};
use mixlora::model::{Model, ModelFiles};
use serde_json::json;
use std::path::{Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";
const PART: &str = "model-00001-of-00001.safetensors";

/// Writes an index that puts every tensor of a file into it.
fn write_index(dir: &Path, file: &str) {
    let names = Edit::open(&dir.join(file)).tensors;
    let map: serde_json::Map<_, _> = names.keys().map(|name| (name.clone(), json!(file))).collect();
    std::fs::write(dir.join(INDEX), json!({ "weight_map": map }).to_string()).unwrap();
}

#[test]
fn stale_index() {
    let dir = tiny();
    let dir = dir.path();
    let (right, _) = generate(dir, &[], 0);
    // Weights of an earlier save, in shards, which would say something else.
    let old = Edit::open(&dir.join("model.safetensors"));
    let flipped = old.value("model.embed_tokens.weight", 0, |v| v + 9.0);
    flipped.write(dir, PART.strip_suffix(".safetensors").unwrap());
    write_index(dir, PART);
    let (out, err) = generate(dir, &[], 0);
    assert_eq!(out, right);
    assert!(err.contains("note: model.safetensors.index.json is not used"), "{err}");
    // Without the file of one piece the shards are the model.
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    let value = |model: &Model| model.head().to_f32().unwrap()[0];
    let shards = open(dir);
    assert_eq!(value(&shards), value(&open(tiny().path())) + 9.0);
    assert!(shards.notes().is_empty());
    // A part without its index is not the model, and neither are several variants.
    std::fs::remove_file(dir.join(INDEX)).unwrap();
    std::fs::rename(dir.join(PART), dir.join("model-00001-of-00002.safetensors")).unwrap();
    refused(
        dir,
        &["model-00001-of-00002.safetensors: is part 1 of 2", "there is no model.safetensors.index.json"],
    );
    std::fs::write(dir.join("model.fp16.safetensors"), "").unwrap();
    refused(dir, &["has 2 .safetensors files", "'model.fp16.safetensors'"]);
}

/// Writes tensors of a model as one part of it.
fn write_part(path: &Path, no: u32, count: u32, tensors: &[String], total: u32) {
    let base = GgufFile::open(fixture("families/llama2.gguf")).unwrap();
    let mut out = GgufWriter::default();
    if no == 0 {
        base.metadata().iter().for_each(|(key, value)| out.set(key, value.clone()));
    }
    for (name, number) in [("no", no), ("count", count), ("tensors.count", total)] {
        out.set(&format!("split.{name}"), Value::U32(number));
    }
    for name in tensors {
        out.tensor(name.clone(), base.tensor(name).unwrap().dims.clone(), base.values_f32(name).unwrap());
    }
    out.write(path).unwrap();
}

/// A model in three parts: their paths.
fn split(dir: &Path) -> [PathBuf; 3] {
    let base = GgufFile::open(fixture("families/llama2.gguf")).unwrap();
    let names: Vec<String> = base.tensors().keys().cloned().collect();
    let third = names.len().div_ceil(3);
    let total = names.len() as u32;
    let paths = [1, 2, 3].map(|i| dir.join(format!("m-0000{i}-of-00003.gguf")));
    for (no, (path, tensors)) in paths.iter().zip(names.chunks(third)).enumerate() {
        write_part(path, no as u32, 3, tensors, total);
    }
    paths
}

#[test]
fn split_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let [first, second, third] = split(dir);
    let whole = open(&fixture("families/llama2.gguf"));
    let (ids, _) = stored("llama2").swap_remove(0);
    let right = logits(&whole, &ids).unwrap();
    let check = |path: &Path| {
        let model = open(path);
        assert_eq!(logits(&model, &ids).unwrap(), right, "{}", path.display());
        assert_eq!(model.fingerprint(), whole.fingerprint());
    };
    // Any part leads to all, and so does the folder.
    [&first, &second, &third].into_iter().for_each(|part| check(part));
    check(dir);
    // What a part is stands in it, not in its name.
    let aside = dir.join("aside");
    for (from, to) in [(&second, &aside), (&third, &second), (&aside, &third)] {
        std::fs::rename(from, to).unwrap();
    }
    check(&first);
    let error = |path: &Path| ModelFiles::open(path).unwrap_err().to_string();
    let names: Vec<String> = ["output.weight".into()].to_vec();
    write_part(&second, 0, 3, &names, 1);
    assert!(error(&first).contains("'split.no' is 0, as in another part"), "{}", error(&first));
    write_part(&second, 3, 3, &names, 1);
    assert!(error(&first).contains("'split.no' is 3, expected 0..3"), "{}", error(&first));
    write_part(&second, 1, 2, &names, 1);
    assert!(error(&first).contains("'split.count' is 2, but it lies among 3 parts"), "{}", error(&first));
    split(dir);
    write_part(&second, 1, 3, &names, 1);
    assert!(error(&first).contains("but the parts have"), "{}", error(&first));
    std::fs::remove_file(&second).unwrap();
    assert!(error(&first).contains("is part 1 of 3 of a model; there is no 'm-00002-of-00003.gguf'"));
    let renamed = dir.join("renamed.gguf");
    std::fs::rename(&first, &renamed).unwrap();
    let e = error(&renamed);
    assert!(e.contains("is part 1 of 3 of a model") && e.contains("llama-gguf-split --merge"), "{e}");
    let e = GgufFile::from_bytes("m.gguf", std::fs::read(&renamed).unwrap()).unwrap_err().to_string();
    assert!(e.contains("is part 1 of 3 of a model"), "{e}");
}

#[test]
fn quantised_folder() {
    let attempt = |field: &str, table: serde_json::Value, name: &str| {
        let dir = tiny();
        change(&dir.path().join("config.json"), |c| c[field] = table.clone());
        let cure = "is not read; give the folder of the model before it was quantised, or a .gguf file";
        refused(
            dir.path(),
            &["config.json", &format!("{field} says that the weights are quantised ({name})"), cure],
        );
        let (out, _) = output(mixlora(&["inspect", dir.path().to_str().unwrap()]), 0);
        assert!(out.contains(&format!("quantised ({name})")), "{out}");
    };
    let config = "quantization_config";
    attempt(config, json!({ "quant_method": "bitsandbytes", "load_in_4bit": true }), "bitsandbytes, 4 bits");
    attempt(config, json!({ "load_in_8bit": true }), "bitsandbytes, 8 bits");
    attempt(config, json!({ "quant_method": "gptq", "bits": 4 }), "gptq, 4 bits");
    attempt(config, json!({ "quant_method": "awq", "bits": 4, "version": "gemm" }), "awq, 4 bits");
    for method in ["fp8", "compressed-tensors", "hqq", "mxfp4", "torchao"] {
        attempt(config, json!({ "quant_method": method }), method);
    }
    attempt(config, json!({ "wbits": 4 }), "quant_method is missing");
    attempt("quantization", json!({ "group_size": 64, "bits": 4 }), "MLX, 4 bits");
    attempt("compression_config", json!({ "quant_method": "compressed-tensors" }), "compressed-tensors");
    for (file, name) in [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ")] {
        let dir = tiny();
        std::fs::write(dir.path().join(file), "{\"bits\": 4}").unwrap();
        refused(dir.path(), &[file, &format!("quantised ({name})")]);
    }
    let dir = tiny();
    change(&dir.path().join("config.json"), |c| c[config] = json!(null));
    generate(dir.path(), &[], 0);
}

#[test]
fn folder_with_a_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let gguf = fixture("families/llama2.gguf");
    std::fs::copy(&gguf, dir.join("one.gguf")).unwrap();
    assert_eq!(ModelFiles::open(dir).unwrap().path(), dir.join("one.gguf"));
    let (out, _) = output(mixlora(&["inspect", dir.to_str().unwrap()]), 0);
    assert!(out.contains("kind: GGUF file"), "{out}");
    std::fs::copy(&gguf, dir.join("two.gguf")).unwrap();
    refused(dir, &["holds 2 GGUF models; give one of 'one.gguf', 'two.gguf'"]);
    // Files of a model's folder stand for it.
    let model = tiny();
    let model = model.path();
    let (right, _) = generate(model, &[], 0);
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        assert_eq!(generate(&model.join(file), &[], 0).0, right, "{file}");
    }
    let mut here =
        mixlora(&["generate", "--model", "model.safetensors", "--prompt", "ab", "--max-tokens", "4"]);
    assert_eq!(output(here.current_dir(model), 0).0, right);
    write_index(model, "model.safetensors");
    assert_eq!(generate(&model.join(INDEX), &[], 0).0, right);
    refused(&model.join("none.safetensors"), &["none.safetensors: cannot be read"]);
    // Adapters and runs are told apart from models, whichever of their files is given.
    let adapter = dir.join("adapter");
    copy(&fixture("peft/lora"), &adapter);
    for path in [adapter.clone(), adapter.join("adapter_model.safetensors")] {
        refused(&path, &["it is an adapter, not a model"]);
    }
    for (path, what) in [(model, "it is a model, not an adapter"), (dir, "an adapter is a folder with")] {
        let (_, err) = generate(model, &["--adapter", path.to_str().unwrap()], 3);
        assert!(err.contains("adapter_config.json: is missing") && err.contains(what), "{err}");
    }
    let run = dir.join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("run.json"), "{}").unwrap();
    refused(&run, &["it is a training run, which gives an adapter, not a model"]);
    let cache = dir.join("models--a--b");
    std::fs::create_dir_all(cache.join("snapshots/0123")).unwrap();
    refused(&cache, &["the model is one of the folders in snapshots"]);
    let empty = tempfile::tempdir().unwrap();
    let e = ModelFiles::open(empty.path()).unwrap_err().to_string();
    assert!(e.contains("config.json: is missing; a model is a folder with config.json"), "{e}");
}

#[test]
fn base_model_names() {
    let (right, _) = generate(tiny().path(), &[], 0);
    let bare = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_string();
    let before = |prefix: &'static str| move |name: &str| format!("{prefix}{name}");
    let in_front = |prefix: &'static str| move |name: &str| format!("{prefix}{}", bare(name));
    type Rename<'a> = &'a dyn Fn(&str) -> String;
    let renames: [(&str, Rename<'_>); 9] = [
        ("bare", &bare),
        ("language_model.", &in_front("language_model.")),
        ("language_model.model.", &before("language_model.")),
        ("model.language_model.", &in_front("model.language_model.")),
        ("_orig_mod.", &before("_orig_mod.")),
        ("module.", &before("module.")),
        ("base_model.model.", &before("base_model.model.")),
        ("transformer.", &in_front("transformer.")),
        ("compiled layers", &|name: &str| {
            name.replace(".self_attn", "._orig_mod.self_attn").replace("model.", "module.")
        }),
    ];
    for (what, rename) in renames {
        // A head of its own, which wrappers name and prefixes may leave alone.
        let dir = tiny();
        change(&dir.path().join("config.json"), |c| c["tie_word_embeddings"] = json!(false));
        reweigh(dir.path(), |mut e| {
            let head = e.tensors["model.embed_tokens.weight"].clone();
            e.tensors.insert("lm_head.weight".into(), head);
            e.tensors = e.tensors.into_iter().map(|(name, t)| (rename(&name), t)).collect();
            e
        });
        let (out, err) = generate(dir.path(), &[], 0);
        assert_eq!(out, right, "{what}: {err}");
        assert!(!err.contains("not used"), "{what}: {err}");
    }
    let dir = tiny();
    reweigh(dir.path(), |mut e| {
        e.tensors = e.tensors.into_iter().map(|(name, t)| (name.replace("model.", "h_"), t)).collect();
        e
    });
    refused(dir.path(), &["20 tensors are missing", "; there are 'h_embed_tokens.weight', "]);
}

#[test]
fn lfs_pointer_of_json() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3500000\n";
    let files = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
    ];
    for file in files {
        let dir = tiny();
        std::fs::write(dir.path().join(file), pointer).unwrap();
        refused(
            dir.path(),
            &[&format!("{file}: is a Git-LFS pointer, not the file itself; run `git lfs pull`")],
        );
    }
    let dir = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        copy(&fixture("peft/lora"), dir.path());
        std::fs::write(dir.path().join(file), pointer).unwrap();
        let (_, err) = generate(tiny().path(), &["--adapter", dir.path().to_str().unwrap()], 3);
        assert!(err.contains(&format!("{file}: is a Git-LFS pointer")), "{err}");
    }
}

#[test]
fn pickle_of_protocol_4() {
    let dir = tempfile::tempdir().unwrap();
    for protocol in 2..=5 {
        for name in ["x.safetensors", "x.pt", "x.gguf", "pytorch_model.bin"] {
            let path = dir.path().join(name);
            let pickle =
                [&[0x80, protocol, 0x95, 10, 0, 0, 0, 0, 0, 0, 0][..], b"}q\0.".repeat(9).as_slice()]
                    .concat();
            std::fs::write(&path, pickle).unwrap();
            let (_, err) = output(mixlora(&["inspect", path.to_str().unwrap()]), 3);
            assert!(
                err.contains(&format!("{name}: is a pickle file")) && err.contains("safe_serialization"),
                "{err}"
            );
        }
    }
    let zip = dir.path().join("model.pt");
    std::fs::write(&zip, [&b"PK\x03\x04"[..], &[0; 100]].concat()).unwrap();
    refused(&zip, &["model.pt: is a pickle file"]);
    // A header of 0x480 bytes begins with the same two.
    let header = format!("{:1152}", r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#);
    let plain = dir.path().join("plain.safetensors");
    std::fs::write(&plain, [&(0x480u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat()).unwrap();
    assert_eq!(Checkpoint::open(&plain).unwrap().values_f32("a").unwrap(), [0.0]);
}

#[cfg(unix)]
#[test]
fn verify_follows_circles() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        std::os::unix::fs::symlink(".", dir.path().join(name)).unwrap();
    }
    let verify = |code| output(mixlora(&["verify", dir.path().to_str().unwrap(), "--device", "cpu"]), code);
    assert!(verify(3).1.contains("no reference file found"));
    std::fs::copy(crate::common::edit::file("layer"), dir.path().join("one.safetensors")).unwrap();
    let (out, _) = verify(0);
    assert!(out.contains("1 files on cpu: 0 failed"), "{out}");
}
