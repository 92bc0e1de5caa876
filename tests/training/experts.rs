//! Trained LoRAs as experts: X-LoRAs of PEFT, folders of LoRAs put into methods that mix them, and the command line.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use crate::common::cli::{mixlora, output};
use crate::common::families::{VOCAB, adapted_logits, fixture, open, stored, worst};
use mixlora::adapter::{ALL_LINEAR, Adapter, Conversation, Expert, with_experts};
use mixlora::io::Checkpoint;
use mixlora::mixture::{Method, find};
use mixlora::model::Model;
use mixlora::nn::Param;
use mixlora::{Stream, Tensor};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// As for LoRAs of PEFT.
const BOUND: f32 = 1e-4;

fn logits_of(folder: &Path) -> Vec<f32> {
    Checkpoint::open(folder.join("logits.safetensors")).unwrap().f32("logits", &[24, VOCAB]).unwrap()
}

fn set(method: &Method, options: Value) -> Method {
    method.set(options.as_object().unwrap()).unwrap()
}

#[test]
fn x_loras_of_peft_give_the_logits_of_peft() {
    for (name, family, experts) in [("xlora", "llama2", 3), ("xlora_top2", "qwen2", 4)] {
        let folder = fixture("peft").join(name);
        let want = logits_of(&folder);
        let (ids, plain) = stored(family).swap_remove(0);
        assert!(worst(&plain, &want) > 0.1, "the adapter changes something");
        let model = open(family);
        let adapter = Adapter::load(&folder, &model).unwrap();
        assert_eq!(adapter.method().tree()["num_experts"], experts);
        let got = adapted_logits(&model, Some(&adapter), &ids).unwrap();
        assert!(worst(&got, &want) < BOUND, "{name}: {}", worst(&got, &want));
        // What it is saved as gives the same again.
        let dir = tempfile::tempdir().unwrap();
        adapter.save(dir.path(), &model, family).unwrap();
        let again = Adapter::load(dir.path(), &model).unwrap();
        assert_eq!(adapted_logits(&model, Some(&again), &ids).unwrap(), got);
    }
}

#[test]
fn an_x_lora_that_is_not_whole_is_refused() {
    let model = open("llama2");
    let changed = |change: &dyn Fn(&Path, &mut Value)| {
        let dir = tempfile::tempdir().unwrap();
        crate::common::families::copy(&fixture("peft/xlora"), dir.path());
        let path = dir.path().join("adapter_config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(dir.path(), &mut config);
        std::fs::write(&path, config.to_string()).unwrap();
        Adapter::load(dir.path(), &model).err().unwrap().to_string()
    };
    let e = changed(&|dir, _| std::fs::remove_dir_all(dir.join("expert_b")).unwrap());
    assert!(e.contains("names the adapter '1' at 'expert_b', which is not there"), "{e}");
    let e = changed(&|_, config| config["scaling_pass_value"] = json!(0.5));
    assert!(e.contains("scaling_pass_value") && e.contains("first pass has no adapters"), "{e}");
    let e = changed(&|_, config| config["adapters"] = json!({}));
    assert!(e.contains("names no adapters"), "{e}");
    let e = changed(&|_, config| config["xlora_depth"] = json!(3));
    assert!(e.contains("internal_xlora_classifier.layers"), "{e}");
    let lora = fixture("peft/lora");
    let e = changed(&|dir, _| {
        std::fs::copy(lora.join("adapter_model.safetensors"), dir.join("adapter_model.safetensors")).unwrap();
    });
    assert!(e.contains("has no classifier"), "{e}");
}

/// The three LoRAs of the X-LoRA fixture.
fn folders() -> Vec<PathBuf> {
    ["expert_a", "expert_b", "expert_c"].map(|name| fixture("peft/xlora").join(name)).into()
}

fn opened(model: &Model) -> Vec<Expert> {
    folders().iter().map(|dir| Expert::open(dir.to_str().unwrap(), model.config()).unwrap()).collect()
}

/// A method over the LoRAs of the fixture.
fn over_experts(model: &Model, method: &Method) -> Adapter {
    let experts = opened(model);
    let (method, targets) = with_experts(method, &[ALL_LINEAR.into()], &experts).unwrap();
    let adapter = Adapter::attach(model, &method, &targets, Stream::new(1)).unwrap();
    adapter.take_experts(&experts, model).unwrap();
    adapter
}

fn param(adapter: &Adapter, name: &str) -> Param {
    let found = adapter.params().into_iter().find(|p| p.parts().iter().any(|(n, _)| n == name));
    found.unwrap_or_else(|| panic!("no {name}"))
}

fn fill(param: &Param, values: &[f32]) {
    let old = param.value();
    param.set(Tensor::from_f32(old.device(), old.dims(), values).unwrap()).unwrap();
}

#[test]
fn x_lora_with_the_gate_of_one_expert_is_that_lora_and_with_equal_gates_their_mean() {
    let model = open("llama2");
    let (ids, plain) = stored("llama2").swap_remove(0);
    let alone: Vec<Vec<f32>> = folders()
        .iter()
        .map(|dir| adapted_logits(&model, Some(&Adapter::load(dir, &model).unwrap()), &ids).unwrap())
        .collect();
    let x_lora = set(&find("x-lora").unwrap().defaults(), json!({ "softmax": false }));
    let adapter = over_experts(&model, &x_lora);
    fill(&param(&adapter, "classifier_1"), &[0.0; 3 * 32]);
    for (i, want) in alone.iter().enumerate() {
        let gates: Vec<f32> = (0..3).map(|e| f32::from(u8::from(e == i))).collect();
        fill(&param(&adapter, "classifier_1_bias"), &gates);
        let got = adapted_logits(&model, Some(&adapter), &ids).unwrap();
        assert!(worst(&got, want) < 2e-5, "expert {i}: {}", worst(&got, want));
        assert!(worst(&got, &plain) > 0.1);
    }
    // The mean of the updates is one LoRA, whose factors stand behind one another: of rank 2 + 4 + 3.
    fill(&param(&adapter, "classifier_1_bias"), &[1.0 / 3.0; 3]);
    let got = adapted_logits(&model, Some(&adapter), &ids).unwrap();
    let mean = mean_of_loras(&model);
    let want = adapted_logits(&model, Some(&mean), &ids).unwrap();
    assert!(worst(&got, &want) < 2e-5, "{}", worst(&got, &want));
    assert!(alone.iter().all(|one| worst(&got, one) > 1e-2));
}

/// One LoRA that is the mean of those of the fixture.
fn mean_of_loras(model: &Model) -> Adapter {
    let loras: Vec<Adapter> = folders().iter().map(|dir| Adapter::load(dir, model).unwrap()).collect();
    let lora = set(&find("lora").unwrap().defaults(), json!({ "r": 9, "lora_alpha": 9.0 }));
    let mean =
        Adapter::attach(model, &lora, &["q_proj", "v_proj", "down_proj"].map(String::from), Stream::new(0))
            .unwrap();
    for whole in mean.params() {
        let mut values = std::collections::HashMap::new();
        for (part, _) in whole.parts() {
            let mut all = Vec::new();
            for lora in &loras {
                let options = lora.method().options();
                let scale = options.alpha() / options.lora().r as f32 / 3.0;
                let own = param(lora, part);
                let (_, _, own) =
                    own.split(&own.value()).unwrap().into_iter().find(|p| p.0 == *part).unwrap();
                let factor = if part.ends_with("lora_b") { scale } else { 1.0 };
                all.extend(own.into_iter().map(|v| v as f32 * factor));
            }
            values.insert(part.clone(), all);
        }
        let device = whole.value().device().clone();
        whole.load(&device, |part| values.get(part).cloned()).unwrap();
    }
    mean
}

/// The likeliest tokens behind a prompt, one at a time with a cache, or from the whole text at each step.
fn greedy(model: &Arc<Model>, adapter: &Adapter, prompt: &[u32], count: usize, cached: bool) -> Vec<u32> {
    let best =
        |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
    let mut said = Vec::new();
    let mut conversation = Conversation::new(model, adapter, 1);
    conversation.push(prompt).unwrap();
    for _ in 0..count {
        said.push(best(conversation.logits(0)));
        if cached {
            conversation.push(&said[said.len() - 1..]).unwrap();
        } else {
            conversation = Conversation::new(model, adapter, 1);
            conversation.push(&[prompt, &said[..]].concat()).unwrap();
        }
    }
    said
}

#[test]
fn two_caches_give_the_tokens_of_none() {
    let model = open("llama2");
    let adapter = Adapter::load(&fixture("peft/xlora"), &model).unwrap();
    let prompt = &stored("llama2")[0].0[..6];
    let cached = greedy(&model, &adapter, prompt, 12, true);
    assert_eq!(cached, greedy(&model, &adapter, prompt, 12, false));
    assert!(cached.iter().any(|token| *token != cached[0]), "{cached:?}");
}

#[test]
fn meteora_and_lora_mixer_start_from_trained_loras() {
    let model = open("llama2");
    for (name, options) in
        [("meteora", json!({ "top_k": 1 })), ("lora-mixer", json!({ "top_k": 1, "preserve": [1] }))]
    {
        let adapter = over_experts(&model, &set(&find(name).unwrap().defaults(), options));
        assert_eq!(adapter.method().tree()["num_experts"], 3, "{name}");
        let path = "model.layers.1.self_attn.v_proj";
        let lora = Adapter::load(&folders()[1], &model).unwrap();
        let part = |adapter: &Adapter, part: &str| {
            let param = param(adapter, part);
            param.split(&param.value()).unwrap().into_iter().find(|p| p.0 == part).unwrap().2
        };
        for (side, width) in [("lora_a", 32), ("lora_b", 16)] {
            let pool = part(&adapter, &format!("{path}.{side}"));
            let own = part(&lora, &format!("{path}.{side}"));
            assert_eq!(pool.len(), 3 * 4 * width, "{name}");
            // The second expert has rank 4, the rank of the pool; the scale of its own is in B.
            let ratio = pool[4 * width] / own[0];
            let of_b = side == "lora_b";
            assert!(if of_b { ratio > 0.5 && ratio <= 1.0 } else { ratio == 1.0 }, "{name} {side} {ratio}");
            for (pool, own) in pool[4 * width..8 * width].iter().zip(&own) {
                assert!((pool - own * ratio).abs() <= 1e-6 * own.abs(), "{name} {side}");
            }
            assert!(pool[2 * width..4 * width].iter().all(|v| *v == 0.0), "the first expert has rank 2");
        }
    }
    let meteora = over_experts(&model, &find("meteora").unwrap().defaults());
    assert_eq!(meteora.method().tree()["tasks"], json!(["expert_a", "expert_b", "expert_c"]));
}

#[test]
fn experts_that_do_not_fit_are_refused() {
    let model = open("llama2");
    let lora = fixture("peft/lora");
    let open_one = |text: &str| Expert::open(text, model.config());
    let name = |dir: &Path| dir.to_str().unwrap().to_string();
    let x_lora = find("x-lora").unwrap().defaults();
    let all = [ALL_LINEAR.to_string()];
    let refused =
        |method: &Method, experts: &[Expert]| with_experts(method, &all, experts).err().unwrap().to_string();
    let others = vec![open_one(&name(&folders()[0])).unwrap(), open_one(&name(&lora)).unwrap()];
    let e = refused(&x_lora, &others);
    assert!(e.contains("'lora' adapts") && e.contains("same linears"), "{e}");
    let twice = vec![open_one(&name(&folders()[0])).unwrap(), open_one(&name(&folders()[0])).unwrap()];
    let e = refused(&x_lora, &twice);
    assert!(e.contains("two are called 'expert_a'") && e.contains("NAME=DIR"), "{e}");
    let e = refused(&x_lora, &[]);
    assert!(e.contains("--experts"), "{e}");
    let e = refused(&find("smora").unwrap().defaults(), &opened(&model));
    assert!(
        e.contains("smora takes no trained LoRAs") && e.contains("x-lora") && e.contains("meteora"),
        "{e}"
    );
    let e = open_one(&name(&fixture("0.1.0/adapter"))).err().unwrap().to_string();
    assert!(e.contains("only LoRAs can be experts"), "{e}");
    let named = open_one(&format!("poems={}", name(&folders()[0]))).unwrap();
    assert_eq!(named.name, "poems");

    // Trained on another model of the same sizes.
    let other = open("qwen2");
    let ours = Expert::open(&name(&fixture("peft/ours")), other.config()).unwrap();
    let (method, targets) = with_experts(&x_lora, &all, std::slice::from_ref(&ours)).unwrap();
    let adapter = Adapter::attach(&other, &method, &targets, Stream::new(1)).unwrap();
    let e = adapter.take_experts(&[ours], &other).unwrap_err().to_string();
    assert!(e.contains("was trained on"), "{e}");
}

#[test]
fn a_run_mixes_loras_that_runs_have_trained() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let data = |name: &str, answer: &str| {
        let line = |i: usize| {
            format!("{{\"prompt\": \"Say {i}. \", \"completion\": \"{answer}\", \"task\": \"{name}\"}}\n")
        };
        std::fs::write(at(&format!("{name}.jsonl")), (0..6).map(line).collect::<String>()).unwrap();
        at(&format!("{name}.jsonl"))
    };
    let [yes, no] = [data("yes", "yes"), data("no", "no")];
    let common =
        ["--model", "data/tiny", "--allow-untrained-eos", "--steps", "3", "--quiet", "--device", "cpu"];
    let runs = |args: &[&str]| output(mixlora(args), 0);
    let train = |more: &[&str]| runs(&[&["train"][..], &common, more].concat());
    let fail = |more: &[&str]| output(mixlora(&[&["train"][..], &common, more].concat()), 3);
    for (name, data) in [("yes", &yes), ("no", &no)] {
        train(&["--method", "lora", "--data", data, "--out", &at(&format!("run-{name}")), "--set", "r=4"]);
    }
    let experts = [format!("yes={}", at("run-yes")), at("run-no")];
    let x_lora =
        ["--method", "x-lora", "--data", &yes, "--experts", &experts[0], &experts[1], "--set", "size=16"];
    train(&[&x_lora[..], &["--set", "depth=2", "--out", &at("mixed")]].concat());
    let tree: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("mixed/run.json")).unwrap()).unwrap();
    let tree = tree.to_string();
    assert!(tree.contains("\"num_experts\":2") && tree.contains("yes="), "{tree}");
    let (said, _) =
        runs(&["generate", "--model", "data/tiny", "--adapter", &at("mixed"), "-n", "3", "Say 1."]);
    assert!(!said.is_empty());
    // The run goes on where it was.
    runs(&["train", "--resume", &at("mixed"), "--set", "train.steps=4", "--quiet"]);

    let (_, e) = fail(&["--method", "x-lora", "--data", &yes, "--out", &at("none")]);
    assert!(e.contains("x-lora mixes LoRAs that are trained already") && e.contains("--experts"), "{e}");
    let (_, e) =
        fail(&["--method", "x-lora", "--data", &yes, "--experts", &at("gone"), "--out", &at("none")]);
    assert!(e.contains("adapter_config.json") && e.contains("is missing"), "{e}");
    let targets = ["--targets", "q_proj", "--out"];
    let (_, e) = fail(&[&x_lora[..], &targets, &[&at("none")]].concat());
    assert!(e.contains("target_modules are q_proj") && e.contains("same linears"), "{e}");
    assert!(!dir.path().join("none").exists(), "nothing is written");
}
