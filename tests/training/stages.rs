//! Streams of tasks: runs in stages, what each leaves of those before, and methods that are made for them.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use crate::common::cli::{mixlora, output};
use mixlora::adapter::{ALL_LINEAR, Adapter};
use mixlora::data::{Batch, Example};
use mixlora::mixture::{Method, find};
use mixlora::model::Model;
use mixlora::nn::{Labels, Pass};
use mixlora::train::{Decay, Schedule, Session, TrainConfig, loss_of};
use mixlora::{Device, Stream, backward};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn tiny() -> Arc<Model> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny");
    Model::open_f32(&path, &Device::cpu()).unwrap()
}

fn set(name: &str, options: Value) -> Method {
    find(name).unwrap().defaults().set(options.as_object().unwrap()).unwrap()
}

/// Each stage has patience of its own, and needs something to validate on.
#[test]
fn patience_ends_a_stage_and_the_next_begins() {
    let place = Place::new();
    let more = ["--patience", "1", "--eval-every", "1"];
    let mut args = place.train("lora", "stream", 300, &more);
    // A rate at which the loss soon rises.
    let rate = args.iter().position(|arg| arg == "3e-3").unwrap();
    args[rate] = "0.3".into();
    let (out, _) = output(mixlora(&args), 0);
    assert_eq!(out.matches("stopped after 1 validation without a better loss").count(), 2, "{out}");
    assert!(out.contains("loss after") && place.path("stream/stage-2/metrics.jsonl").exists(), "{out}");
    std::fs::remove_file(place.path("size/valid.jsonl")).unwrap();
    let (_, err) = output(mixlora(&place.train("lora", "other", 5, &more)), 3);
    assert!(err.contains("train.patience of stage 2: needs validation data"), "{err}");
    assert!(!place.path("other").exists());
}

/// A place with two tasks that say other things of the same words.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let words = ["sun", "rain", "wind", "snow", "fog", "hail", "dew", "frost"];
        for (task, answers) in [("colour", ["red", "blue"]), ("size", ["tall", "tiny"])] {
            let line = |(i, word): (usize, &&str)| {
                format!("{{\"prompt\": \"{task} of {word}: \", \"completion\": \"{}\"}}\n", answers[i % 2])
            };
            let text: String = words.iter().enumerate().map(line).collect();
            std::fs::create_dir_all(dir.path().join(task)).unwrap();
            for name in ["train.jsonl", "valid.jsonl"] {
                std::fs::write(dir.path().join(task).join(name), &text).unwrap();
            }
        }
        Place(dir)
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }
    /// Settings of both tasks, one after the other.
    fn settings(&self, steps: usize) -> String {
        let stage = |task: &str| {
            let data = self.text(task);
            format!("[[stages]]\ndata = {data:?}\nsteps = {steps}\ntask = \"{task}\"\n")
        };
        std::fs::write(self.path("stages.toml"), stage("colour") + &stage("size")).unwrap();
        self.text("stages.toml")
    }
    /// The arguments of a run in stages.
    fn train(&self, method: &str, out: &str, steps: usize, more: &[&str]) -> Vec<String> {
        let settings = self.settings(steps);
        let out = self.text(out);
        let fixed = [
            "train",
            "--model",
            "data/tiny",
            "--config",
            &settings,
            "--method",
            method,
            "--out",
            &out,
            "--device",
            "cpu",
            "--allow-untrained-eos",
            "--quiet",
            "--learning-rate",
            "3e-3",
            "--set",
            "train.answers=0",
            "--micro-batch",
            "8",
        ];
        fixed.iter().chain(more).map(|text| text.to_string()).collect()
    }
    fn losses(&self, out: &str) -> Vec<Vec<f64>> {
        let stages: Value =
            serde_json::from_slice(&std::fs::read(self.path(out).join("stages.json")).unwrap()).unwrap();
        serde_json::from_value(stages["losses"].clone()).unwrap()
    }
}

/// By how much the loss of the first task rose while the second was trained.
fn forgotten(losses: &[Vec<f64>]) -> f64 {
    losses[1][0] - losses[0][0]
}

#[test]
fn mora_cl_forgets_less_than_one_lora_on_a_stream_of_two_tasks() {
    let place = Place::new();
    let (text, _) = output(mixlora(&place.train("lora", "lora", 60, &["--set", "r=8"])), 0);
    assert!(text.contains("loss after") && text.contains("forgetting"), "{text}");
    output(mixlora(&place.train("mora-cl", "mora", 60, &["--set", "r=8", "--set", "top_k=4"])), 0);
    let [lora, mora] = ["lora", "mora"].map(|out| place.losses(out));
    for losses in [&lora, &mora] {
        assert!(losses[0][0] < 0.5 && losses[1][1] < 0.5, "both tasks are learned: {losses:?}");
    }
    let [lora, mora] = [&lora, &mora].map(|losses| forgotten(losses));
    assert!(mora < lora, "mora-cl forgets {mora}, a LoRA {lora}");

    // The second stage has twice the rows, of which those of the first are what they were.
    let model = tiny();
    let stage = |n: usize| Adapter::load(&place.path(&format!("mora/stage-{n}")), &model).unwrap();
    let [first, second] = [stage(1), stage(2)];
    assert_eq!(second.method().tree()["r"], 16);
    for (old, new) in first.params().iter().zip(second.params()) {
        let new_parts = new.split(&new.value()).unwrap();
        for ((name, _, old), (_, _, new)) in old.split(&old.value()).unwrap().iter().zip(&new_parts) {
            assert_eq!(&new[..old.len()], &old[..], "{name}");
            assert_ne!(new.len(), old.len(), "{name}");
        }
    }
    // The folder of all stages stands for the last one.
    let whole = Adapter::load(&place.path("mora"), &model).unwrap();
    assert_eq!(whole.method(), second.method());
}

#[test]
fn a_stream_goes_on_where_it_was_stopped() {
    let place = Place::new();
    output(mixlora(&place.train("dps", "whole", 6, &["--set", "r=4"])), 0);
    output(mixlora(&place.train("dps", "parts", 6, &["--set", "r=4", "--stop-at", "3"])), 0);
    assert_eq!(place.losses("parts"), Vec::<Vec<f64>>::new());
    let (_, e) = output(mixlora(&place.train("dps", "parts", 6, &["--set", "r=4"])), 3);
    assert!(e.contains("already holds a run: resume it"), "{e}");
    output(mixlora(&["train", "--resume", &place.text("parts"), "--quiet"]), 0);
    assert_eq!(place.losses("parts"), place.losses("whole"));
    let tensors = |out: &str| {
        let step = place.path(out).join("stage-2/step-000006/adapter_model.safetensors");
        std::fs::read(step).unwrap()
    };
    assert_eq!(tensors("parts"), tensors("whole"), "not a bit differs");
    let (json, _) = output(mixlora(&["train", "--resume", &place.text("parts"), "--json"]), 0);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["stages"], json!(["colour", "size"]));
}

#[test]
fn the_category_that_peam_does_not_train_is_unchanged_to_the_byte() {
    let place = Place::new();
    output(mixlora(&place.train("peam", "run", 10, &["--set", "r=4"])), 0);
    let losses = place.losses("run");
    assert_eq!(losses[0][0], losses[1][0], "its loss is identical");
    assert!(losses[1][1] < losses[0][1] - 0.5, "the other is learned: {losses:?}");
    let model = tiny();
    let stage = |n: usize| Adapter::load(&place.path(&format!("run/stage-{n}")), &model).unwrap();
    let [first, second] = [stage(1), stage(2)];
    assert_eq!(second.method().tree()["training"], json!(["size"]));
    let mut changed = 0;
    for (old, new) in first.params().iter().zip(second.params()) {
        for ((name, _, old), (_, _, new)) in
            old.split(&old.value()).unwrap().iter().zip(&new.split(&new.value()).unwrap())
        {
            let half = old.len() / 2;
            assert_eq!(old[..half], new[..half], "{name}");
            changed += usize::from(old[half..] != new[half..]);
        }
    }
    assert!(changed > 0);
}

#[test]
fn wrong_answers_push_the_right_ones_up() {
    let model = tiny();
    let method = set("peam", json!({ "r": 4, "tasks": ["a"], "contrast_coef": 5.0 }));
    let example = |answer: u32| {
        let ids = vec![5, 6, 7, 8, answer, answer + 1];
        Example::new(ids, vec![false, false, false, false, true, true]).with_task(Some("a"))
    };
    // What is right is the less likely one at first.
    let device = model.device().clone();
    let batch = |example: &Example| Batch::new(&[example], None, 0, &device).unwrap();
    let mut both = [example(20), example(40)];
    both.sort_by(|a, b| {
        let loss = |e: &Example| loss_of(&model, None, &batch(e)).unwrap();
        loss(b).total_cmp(&loss(a))
    });
    let [right, wrong] = both;
    let pair = right.clone().with_rejected(Some(wrong.clone()));
    let margin = |contrast: f32, example: &Example| {
        let method = method.with("contrast_coef", contrast).unwrap();
        let adapter = Adapter::attach(&model, &method, &[ALL_LINEAR.into()], Stream::new(3)).unwrap();
        let schedule =
            Schedule { learning_rate: 1e-3, warmup_steps: 0, decay: Decay::Constant, ..Schedule::default() };
        let config = TrainConfig { schedule, steps: 20, ..TrainConfig::default() };
        let mut session = Session::new(model.clone(), adapter, config).unwrap();
        let apart = |s: &Session| {
            let loss = |e: &Example| loss_of(&s.model, &s.adapter, &batch(e)).unwrap();
            loss(&wrong) - loss(&right)
        };
        let before = apart(&session);
        let mut aux = 0.0;
        for _ in 0..4 {
            aux = session.step(&[batch(example)]).unwrap().aux_loss;
        }
        (apart(&session) - before, aux)
    };
    let (with, aux) = margin(5.0, &pair);
    let (without, none) = margin(0.0, &pair);
    let (alone, nothing) = margin(5.0, &right);
    assert!(with > 1.05 * without && without > 0.0, "margin {with} with the contrast, {without} without");
    assert_eq!([none, nothing], [0.0; 2]);
    assert!(aux > 0.0 && (alone - without).abs() < 1e-3, "{aux} {alone} {without}");
}

#[test]
fn a_stage_of_dps_begins_where_the_one_before_ended_and_trains_what_it_may() {
    let model = tiny();
    let attach = |stage: usize| {
        let method = set("dps", json!({ "r": 2, "stage": stage, "lora_dropout": 0.0 }));
        Adapter::attach(&model, &method, &[ALL_LINEAR.into()], Stream::new(stage as u64)).unwrap()
    };
    let [first, second] = [attach(1), attach(2)];
    for param in first.params() {
        let value = param.value();
        let values = Stream::new(3).named(&param.name()).normal_vec(value.len(), 0.05);
        param.set(mixlora::Tensor::from_f32(model.device(), value.dims(), &values).unwrap()).unwrap();
    }
    second.start_from(&first).unwrap();
    let example = Example::new((3..15).collect(), (0..12).map(|t| t > 4).collect());
    let batch = Batch::new(&[&example], None, 0, model.device()).unwrap();
    let loss = |adapter: &Adapter| loss_of(&model, adapter, &batch).unwrap();
    assert_eq!(loss(&first), loss(&second), "the function is continuous");

    let pass = Pass::training(batch.units.clone(), Stream::new(1)).with_labels(Labels::default());
    let pass = pass.with_adapters(second.sites().clone());
    let hidden = model.forward(&batch.ids, &pass, Default::default()).unwrap();
    let hidden = hidden.reshape(&[12, model.config().hidden_size]).unwrap();
    let loss = model.loss(&hidden, &batch.targets).unwrap();
    let one = mixlora::Tensor::full(model.device(), &[], 1.0).unwrap();
    let gradients = backward(&[(&loss, one)]).unwrap();
    for param in second.params() {
        let gradient = param.gradient(&gradients).unwrap().to_f64().unwrap();
        let moves = |values: &[f64]| values.iter().any(|v| *v != 0.0);
        let half = gradient.len() / 2;
        if param.name().ends_with("scale") {
            assert!(
                gradient.len() == 2 && gradient[0] != 0.0 && gradient[1] != 0.0,
                "{} {gradient:?}",
                param.name()
            );
        } else {
            assert!(!moves(&gradient[..half]), "{}: the LoRA of the first stage stays", param.name());
            // B is 0 at the start: A has no gradient yet.
            assert_eq!(moves(&gradient[half..]), param.name().ends_with("lora_b"), "{}", param.name());
        }
    }
}

#[test]
fn stages_that_cannot_work_are_refused_before_anything_is_written() {
    let place = Place::new();
    let refused = |settings: &str| {
        std::fs::write(place.path("bad.toml"), settings).unwrap();
        let out = place.text("none");
        let args = [
            "train",
            "--model",
            "data/tiny",
            "--config",
            &place.text("bad.toml"),
            "--out",
            &out,
            "--allow-untrained-eos",
        ];
        let (_, e) = output(mixlora(&args), 3);
        assert!(!Path::new(&out).exists());
        e
    };
    let data = place.text("colour");
    let e = refused(&format!("[[stages]]\ndata = {data:?}\n[[stages]]\ntask = \"size\"\n"));
    assert!(e.contains("stages[1]") && e.contains("data"), "{e}");
    let e = refused(&format!("[[stages]]\ndata = {data:?}\n[[stages]]\ndata = \"gone\"\n"));
    assert!(e.contains("gone"), "{e}");
    let e = refused(&format!("[[stages]]\ndata = {data:?}\nsteps = 0\n"));
    assert!(e.contains("stages") && e.contains("0 steps"), "{e}");
    let e = refused(&format!("[[stages]]\ndata = {data:?}\nlength = 3\n"));
    assert!(e.contains("length"), "{e}");

    // A start that does not fit.
    output(mixlora(&place.train("lora", "lora", 1, &["--set", "r=2"])), 0);
    let start =
        ["--start-from", &place.text("lora"), "--data", &data, "--steps", "1", "--out", &place.text("next")];
    let common = ["train", "--model", "data/tiny", "--allow-untrained-eos", "--quiet"];
    let (_, e) = output(mixlora(&[&common[..], &start, &["--method", "smora"]].concat()), 3);
    assert!(e.contains("is a lora, but the run trains a smora"), "{e}");
    let (_, e) = output(mixlora(&[&common[..], &start, &["--method", "lora", "--set", "r=1"]].concat()), 3);
    assert!(e.contains("2 rows") && e.contains("do not go into 1 rows"), "{e}");
    assert!(!place.path("next").exists());
    output(mixlora(&[&common[..], &start, &["--method", "lora", "--set", "r=2"]].concat()), 0);
}

#[test]
fn a_stage_that_has_solved_its_tasks_ends_early() {
    let place = Place::new();
    let data = place.text("colour");
    let stage = |below: f64| {
        format!(
            "[[stages]]\ndata = {data:?}\nsteps = 60\ntask = \"colour\"\nsolved_below = {below}\nleast_steps = 6\n"
        )
    };
    std::fs::write(place.path("early.toml"), stage(0.5) + &stage(0.5)).unwrap();
    let args = [
        "train",
        "--model",
        "data/tiny",
        "--config",
        &place.text("early.toml"),
        "--method",
        "dps",
        "--out",
        &place.text("run"),
        "--allow-untrained-eos",
        "--quiet",
        "--learning-rate",
        "3e-3",
        "--set",
        "train.answers=0",
        "--set",
        "r=4",
        "--eval-every",
        "6",
        "--micro-batch",
        "8",
    ];
    output(mixlora(&args), 0);
    let last = |stage: &str| {
        let name = std::fs::read_to_string(place.path("run").join(stage).join("last")).unwrap();
        name.trim().trim_start_matches("step-").parse::<usize>().unwrap()
    };
    let first = last("stage-1");
    assert!((6..60).contains(&first) && first.is_multiple_of(6), "{first}");
    assert_eq!(last("stage-2"), 6, "nothing is left to solve");
    let losses = place.losses("run");
    assert!(losses[0][0] < 0.5, "{losses:?}");
}

/// Conditions of samples reach the measurement, and what is longer than the model's context is cut as in training.
#[test]
fn stages_are_measured_on_what_they_train_on() {
    let place = Place::new();
    for (who, answer) in [("ann", "red"), ("bob", "blue")] {
        let long = "word ".repeat(200);
        let line = |prompt: &str| json!({ "prompt": prompt, "completion": answer, "condition": format!("This is {who}.") });
        let text = [line("What colour?"), line(&long)].map(|line| line.to_string() + "\n").concat();
        std::fs::write(place.path(&format!("{who}.jsonl")), text).unwrap();
    }
    let stage =
        |who: &str| format!("[[stages]]\ndata = {:?}\nsteps = 2\n", place.text(&format!("{who}.jsonl")));
    std::fs::write(place.path("users.toml"), stage("ann") + &stage("bob")).unwrap();
    let args = [
        "train",
        "--model",
        "data/tiny",
        "--config",
        &place.text("users.toml"),
        "--method",
        "cond-router",
        "--out",
        &place.text("run"),
        "--allow-untrained-eos",
        "--quiet",
        "--set",
        "text.max_untrained=0.6",
        "--set",
        "train.answers=0",
    ];
    output(mixlora(&args), 0);
    let losses = place.losses("run");
    assert!(losses.len() == 2 && losses.iter().flatten().all(|loss| loss.is_finite()), "{losses:?}");

    let model = ["--model", "data/tiny", "--adapter", &place.text("run")];
    let data = place.text("bob.jsonl");
    let (text, _) = output(mixlora(&[&["eval"][..], &model, &["--data", &data, "--json"]].concat()), 0);
    let measured: Value = serde_json::from_str(&text).unwrap();
    assert!((measured["loss"].as_f64().unwrap() - losses[1][1]).abs() < 1e-4, "{text}");
    std::fs::write(place.path("who.txt"), "This is bob.\n").unwrap();
    let said = |condition: &str| {
        let more = ["--condition", condition, "--raw", "-n", "4", "What colour?"];
        output(mixlora(&[&["generate"][..], &model, &more].concat()), 0).0
    };
    assert_eq!(said(&place.text("who.txt")), said("This is bob."));
}
