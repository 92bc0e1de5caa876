//! Files of earlier versions: a run that goes on, an adapter that loads. The fixtures were written by commit 28dfa9b.
#![cfg(feature = "tokenizer")]

use mixlora::adapter::{Adapter, AdapterOptions, AdapterWeights};
use mixlora::mixture::{Methods, find};
use mixlora::model::Model;
use mixlora::train::{End, Inputs, Observer, Progress, Run, RunConfig, StepReport, Stop, StoredRun};
use mixlora::{Device, Stream};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Losses of steps 4 to 6, as the version that wrote the run had them.
const LOSSES: [f64; 3] = [6.540619532267253, 8.910759607950846, 6.5313765207926435];

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A copy of the stored run, to be written to.
fn run() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let stored = at("tests/fixtures/0.1.0/run");
    for folder in ["", "step-000003"] {
        std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        for entry in std::fs::read_dir(stored.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, dir.path().join(folder).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    dir
}

/// The run's settings with its files where they are here.
fn here(stored: &StoredRun) -> RunConfig {
    RunConfig { model: at("data/tiny"), data: at("tests/fixtures/0.1.0/data.jsonl"), ..stored.config.clone() }
}

#[derive(Default)]
struct Losses(Vec<f64>);

impl Observer for Losses {
    fn step(&mut self, report: &StepReport, _: &Progress) {
        self.0.push(report.loss);
    }
}

#[test]
fn a_run_of_the_first_version_goes_on() {
    let dir = run();
    let stored = StoredRun::open(dir.path(), &Methods::builtin()).unwrap();
    // It has the options of all methods, of which these are smora's; nothing needs to be said.
    assert_eq!(stored.notes, Vec::<String>::new());
    let options = json!({ "bias_lr": 0.01, "lora_alpha": 16.0, "lora_dropout": 0.0, "r": 2, "top_k": 1 });
    assert_eq!(stored.config.tree().unwrap()["options"], options);
    let config = here(&stored);
    let parts = Inputs::read(config).unwrap().load(&Device::cpu(), false).unwrap();
    let mut losses = Losses::default();
    let mut run = Run::resume(stored, parts, &mut losses).unwrap();
    assert_eq!(run.state().step, 3);
    assert_eq!(run.go(&Stop::default(), &mut losses).unwrap(), End::Finished);
    assert_eq!(losses.0.len(), 3);
    for (now, then) in losses.0.iter().zip(LOSSES) {
        assert!((now - then).abs() < 1e-4, "{now} {then}");
    }
}

#[test]
fn what_a_stored_run_does_not_say_has_its_methods_default() {
    let dir = run();
    let path = dir.path().join("run.json");
    let mut file: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    file["config"]["options"].as_object_mut().unwrap().remove("bias_lr");
    file["config"]["train"].as_object_mut().unwrap().remove("max_skipped");
    file["config"]["text"]["of_a_later_version"] = json!(1);
    file["config"]["options"]["floor"] = json!(0.5);
    std::fs::write(&path, file.to_string()).unwrap();
    let stored = StoredRun::open(dir.path(), &Methods::builtin()).unwrap();
    let tree = stored.config.tree().unwrap();
    assert_eq!(tree["options"]["bias_lr"], json!(1e-5), "smora's default, not that of others");
    assert_eq!(tree["train"]["max_skipped"], 0);
    let notes = stored.notes.join("\n");
    assert!(notes.contains("text.of_a_later_version: unknown to this version"), "{notes}");
    assert!(notes.contains("options.floor: unknown to this version"), "{notes}");
    drop(stored);
    // In a user's file the same names are errors.
    let layer = ("run.toml".to_string(), json!({ "method": "smora", "options": { "floor": 0.5 } }));
    let e = RunConfig::layered(&[layer], &Methods::builtin()).unwrap_err().to_string();
    assert!(e.contains("options.floor: is no option of smora; its options are r, lora_alpha"), "{e}");
}

#[test]
fn an_adapter_of_the_first_version_loads() {
    let model = Model::open_f32(&at("data/tiny"), &Device::cpu()).unwrap();
    let adapter = Adapter::load(&at("tests/fixtures/0.1.0/adapter"), &model).unwrap();
    assert_eq!(adapter.notes(), Vec::<String>::new());
    let cond = find("mixlora-cond").unwrap().defaults();
    let sizes = json!({ "r": 2, "num_factors": 4, "lora_alpha": 8.0 });
    assert_eq!(*adapter.method(), cond.set(sizes.as_object().unwrap()).unwrap());
    let stored = std::fs::read(at("tests/fixtures/0.1.0/adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(adapter.to_safetensors().unwrap(), stored);
    // Without a model: read, and put on one afterwards.
    let weights = AdapterWeights::read(&at("tests/fixtures/0.1.0/adapter"), &Methods::builtin()).unwrap();
    assert_eq!(weights.method, *adapter.method());
    let a = weights.matrix("model.layers.0.self_attn.q_proj.factors_a").unwrap();
    assert_eq!((a.rows, a.cols), (4, 128));
    let attached = weights.attach(&model, &AdapterOptions::default()).unwrap();
    assert_eq!(attached.to_safetensors().unwrap(), stored);
    let mut less = weights.clone();
    less.matrices.remove(0);
    let e = less.attach(&model, &AdapterOptions::default()).err().unwrap().to_string();
    assert!(e.contains("is missing"), "{e}");
    let mut narrow = weights.clone();
    narrow.matrices[0].cols = 1;
    let e = narrow.attach(&model, &AdapterOptions::default()).err().unwrap().to_string();
    assert!(e.contains("expected ["), "{e}");
    // Written and read again it is the same, for PEFT's names and transposes too.
    let lora = find("lora").unwrap().defaults().with("r", 2).unwrap();
    let lora = Adapter::attach(&model, &lora, &["q_proj".into()], Stream::new(1)).unwrap();
    for adapter in [&adapter, &lora] {
        let dir = tempfile::tempdir().unwrap();
        adapter.save(dir.path(), &model, "tiny").unwrap();
        let weights = AdapterWeights::read(dir.path(), &Methods::builtin()).unwrap();
        let again = tempfile::tempdir().unwrap();
        weights.save(again.path()).unwrap();
        for file in ["adapter_model.safetensors", "adapter_config.json", "mixlora.json"] {
            let read = |dir: &tempfile::TempDir| std::fs::read(dir.path().join(file)).unwrap();
            assert_eq!(read(&dir), read(&again), "{file}");
        }
    }
}
