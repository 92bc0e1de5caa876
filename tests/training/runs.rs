//! Runs: resuming, the best checkpoint, divergence, settings, memory.
#![cfg(feature = "tokenizer")]

use crate::common::tiny::{write_data, write_text_model};
use mixlora::Device;
use mixlora::mixture::{MethodSpec, Methods, SitePart, TakesExperts, find};
use mixlora::train::{End, Inputs, Observer, Parts, Run, RunConfig, Stop, StoredRun};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_text_model(&dir.path().join("model"));
        write_data(&dir.path().join("data"), 20);
        Place { dir }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn config(&self, method: &str, changes: &[(&str, Value)]) -> RunConfig {
        // Small enough for the tiny model.
        let small =
            [("r", json!(2)), ("num_factors", json!(4)), ("num_experts", json!(3)), ("top_k", json!(2))];
        let spec = find(method).unwrap();
        let small = small.into_iter().filter(|(key, _)| spec.option_names().contains(key));
        let changes: Vec<_> = small.chain(changes.iter().cloned()).collect();
        self.config_of(&self.path("model"), method, &changes)
    }
    /// With the method's own sizes.
    fn config_of(&self, model: &Path, method: &str, changes: &[(&str, Value)]) -> RunConfig {
        let spec = find(method).unwrap();
        let mut layers = vec![(
            "test".to_string(),
            json!({
                "model": model, "data": self.path("data"), "method": method, "text": { "max_length": 512 },
                "train": { "steps": 20, "micro_batch": 2, "grad_accumulation": 2, "learning_rate": 1e-2 },
            }),
        )];
        for (key, value) in changes {
            layers.push(("test".into(), RunConfig::setting(spec, key, value.clone()).unwrap()));
        }
        RunConfig::layered(&layers, &Methods::builtin()).unwrap()
    }
    fn parts(&self, config: &RunConfig, device: &Device) -> Parts {
        Inputs::read(config.clone()).unwrap().load(device, false).unwrap()
    }
}

/// Collects what an observer is told.
#[derive(Default)]
struct Seen {
    losses: Vec<f64>,
    evals: Vec<(usize, f64, bool)>,
    warnings: Vec<String>,
}

impl Observer for Seen {
    fn step(&mut self, r: &mixlora::train::StepReport, _: &mixlora::train::Progress) {
        self.losses.push(r.loss);
    }
    fn eval(&mut self, r: &mixlora::train::EvalReport) {
        self.evals.push((r.step, r.loss, r.best));
    }
    fn warning(&mut self, text: &str) {
        self.warnings.push(text.into());
    }
}

fn adapter_bytes(dir: &Path) -> Vec<u8> {
    let dir = mixlora::adapter::pointed(&dir.join("last")).unwrap();
    std::fs::read(dir.join("adapter_model.safetensors")).unwrap()
}

#[test]
fn ten_and_ten_steps_are_twenty() {
    let place = Place::new();
    for device in [Device::cpu()].into_iter().chain(crate::common::gpu()) {
        for (method, more) in [
            ("mixlora-cond", None),
            ("mixlora-cond-gated", None),
            ("mixlora-cond-gated", Some(("use_contrastive_instr_token", json!(true)))),
            ("smora", Some(("bias_lr", json!(1e-2)))),
            ("mixlora-ffn", None),
        ] {
            let mut changes = vec![("lora_dropout", json!(0.1)), ("save_every", json!(7))];
            let option = more.as_ref().map_or("", |(option, _)| option);
            changes.extend(more.clone());
            let config = place.config(method, &changes);
            let dirs = ["whole", "again", "parts"]
                .map(|n| place.path(&format!("{n}-{method}{option}-{}", device.name())));
            for dir in &dirs[..2] {
                let mut run = Run::start(place.parts(&config, &device), Some(dir)).unwrap();
                assert_eq!(run.go(&Stop::default(), &mut ()).unwrap(), End::Finished);
            }
            assert!(adapter_bytes(&dirs[0]) == adapter_bytes(&dirs[1]), "{method}: the same run twice");
            let mut run = Run::start(place.parts(&config, &device), Some(&dirs[2])).unwrap();
            assert_eq!(run.go(&Stop::at(Some(10)), &mut ()).unwrap(), End::Stopped);
            drop(run);
            let stored = StoredRun::open(&dirs[2], &Methods::builtin()).unwrap();
            let config = stored.config.clone();
            let mut seen = Seen::default();
            let mut run = Run::resume(stored, place.parts(&config, &device), &mut seen).unwrap();
            assert_eq!(run.state().step, 10);
            assert_eq!(run.go(&Stop::default(), &mut seen).unwrap(), End::Finished);
            assert_eq!(seen.losses.len(), 10);
            assert!(adapter_bytes(&dirs[0]) == adapter_bytes(&dirs[2]), "{method} on {}", device.name());
        }
    }
}

#[test]
fn the_best_step_is_kept_and_named() {
    let place = place_that_gets_worse();
    let config = place.config("lora", &[("eval_every", json!(2)), ("keep", json!(1))]);
    let cpu = Device::cpu();
    let (dir, mut seen) = (place.path("run"), Seen::default());
    Run::start(place.parts(&config, &cpu), Some(&dir)).unwrap().go(&Stop::default(), &mut seen).unwrap();
    assert_eq!(seen.evals.len(), 10);
    let best = seen.evals.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    assert!(best < 20, "{:?}", seen.evals);
    let named = mixlora::adapter::pointed(&dir.join("best")).unwrap();
    assert_eq!(named, dir.join(format!("step-{best:06}")));
    assert_eq!(mixlora::adapter::locate(&dir).unwrap(), named);
    assert_eq!(mixlora::adapter::locate(&dir.join("last")).unwrap(), dir.join("step-000020"));
    let metrics = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let kinds = |t: &str| metrics.lines().filter(|l| l.contains(&format!("\"t\":\"{t}\""))).count();
    assert_eq!((kinds("run"), kinds("step"), kinds("eval")), (1, 20, 10));
    let lines: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(lines.iter().all(|l| l["time"].as_f64().is_some()), "{metrics}");
    let place = &lines[0]["place"];
    assert!(["commit", "driver", "adapter"].iter().all(|key| place[key].is_string()), "{place}");
    let epochs: Vec<f64> = lines.iter().filter_map(|l| l["epoch"].as_f64()).collect();
    assert!(epochs.len() == 20 && epochs[0] > 0.0 && epochs.is_sorted(), "{epochs:?}");
    assert!(std::fs::read_to_string(dir.join("loss.svg")).unwrap().starts_with("<svg"));
}

/// A place whose validation asks for answers that training never gives: the more it learns, the less likely they are.
fn place_that_gets_worse() -> Place {
    let place = Place::new();
    let valid = std::fs::read_to_string(place.path("data/valid.jsonl")).unwrap();
    std::fs::write(place.path("data/valid.jsonl"), valid.replace("ab", "QZQZQZQZQZ")).unwrap();
    place
}

/// Goes on with a run, with changes, to its end.
fn resume(place: &Place, dir: &Path, changes: &[(&str, Value)]) -> (End, Seen) {
    let stored = StoredRun::open(dir, &Methods::builtin()).unwrap();
    let mut layers = vec![("stored".to_string(), stored.config.tree().unwrap())];
    let layer = |(key, value): &(&str, Value)| ("test".to_string(), RunConfig::at(key, value.clone()));
    layers.extend(changes.iter().map(layer));
    let config = RunConfig::layered(&layers, &Methods::builtin()).unwrap();
    stored.changes(&config).unwrap();
    let mut seen = Seen::default();
    let mut run = Run::resume(stored, place.parts(&config, &Device::cpu()), &mut seen).unwrap();
    (run.go(&Stop::default(), &mut seen).unwrap(), seen)
}

#[test]
fn patience_ends_a_run_and_more_of_it_goes_on() {
    let place = place_that_gets_worse();
    let cpu = Device::cpu();
    let run = |name: &str, more: &[(&str, Value)]| {
        let changes: Vec<_> = [("eval_every", json!(2))].into_iter().chain(more.iter().cloned()).collect();
        let dir = place.path(name);
        let mut seen = Seen::default();
        let mut run = Run::start(place.parts(&place.config("lora", &changes), &cpu), Some(&dir)).unwrap();
        let end = run.go(&Stop::default(), &mut seen).unwrap();
        assert!(run.is_finished());
        (end, seen, run.state().clone(), dir)
    };
    let (end, seen, _, whole) = run("whole", &[]);
    assert_eq!(end, End::Finished);
    let best = seen.evals.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    let (end, seen, state, dir) = run("patient", &[("patience", json!(2))]);
    assert_eq!(end, End::NoBetter);
    assert!(best + 8 <= 20, "the test has room behind step {best}");
    // The validations of which each has a worse loss than the best one are counted, and no others.
    assert_eq!((state.step, state.best.unwrap().1), (best + 4, best));
    assert_eq!(state.validations_without_better(), 2);
    assert_eq!(seen.evals.last().unwrap().0, best + 4);
    assert_eq!(mixlora::adapter::locate(&dir).unwrap(), dir.join(format!("step-{best:06}")));
    let last = mixlora::adapter::locate(&dir.join("last")).unwrap();
    assert_eq!(last, dir.join(format!("step-{:06}", best + 4)));
    let ends = || -> Vec<Value> {
        let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["t"] == "end").collect()
    };
    let line = &ends()[0];
    assert_eq!((&line["why"], &line["step"]), (&json!("patience"), &json!(best + 4)));
    assert_eq!((&line["best"]["step"], &line["validations_without_better"]), (&json!(best), &json!(2)));
    // As it was, it is over, however often it is asked.
    for _ in 0..2 {
        let (end, seen) = resume(&place, &dir, &[]);
        assert_eq!((end, seen.losses.len()), (End::NoBetter, 0));
    }
    // With more it goes on, to where it had gone with that from the beginning.
    let (end, seen) = resume(&place, &dir, &[("train.patience", json!(3))]);
    assert_eq!((end, seen.losses.len()), (End::NoBetter, 2));
    let (_, _, state, more) = run("more", &[("patience", json!(3))]);
    assert_eq!(state.step, best + 6);
    assert!(adapter_bytes(&dir) == adapter_bytes(&more));
    // Without any it does all its steps, and is the run that never had any.
    assert_eq!(resume(&place, &dir, &[("train.patience", Value::Null)]).0, End::Finished);
    assert!(adapter_bytes(&dir) == adapter_bytes(&whole));
    assert_eq!(ends().last().unwrap()["why"], "steps");
}

/// A run that is stopped between two validations has counted those before.
#[test]
fn a_stop_does_not_renew_patience() {
    let place = place_that_gets_worse();
    let changes = [("eval_every", json!(2)), ("save_every", json!(3)), ("patience", json!(2))];
    let config = place.config("lora", &changes);
    let cpu = Device::cpu();
    let start = |name: &str| Run::start(place.parts(&config, &cpu), Some(&place.path(name))).unwrap();
    let mut run = start("whole");
    run.go(&Stop::default(), &mut ()).unwrap();
    let end = run.state().step;
    drop(run);
    for stop in [end - 1, end - 3] {
        let name = format!("stopped-{stop}");
        assert_eq!(start(&name).go(&Stop::at(Some(stop)), &mut ()).unwrap(), End::Stopped);
        assert_eq!(resume(&place, &place.path(&name), &[]).0, End::NoBetter);
        assert!(adapter_bytes(&place.path("whole")) == adapter_bytes(&place.path(&name)), "{stop}");
    }
}

#[test]
fn patience_needs_validation_data() {
    let place = Place::new();
    std::fs::remove_file(place.path("data/valid.jsonl")).unwrap();
    let config = place.config("lora", &[("patience", json!(2))]);
    let parts = place.parts(&config, &Device::cpu());
    let error = Run::start(parts, Some(&place.path("run"))).err().unwrap().to_string();
    assert!(
        error.contains("train.patience: needs validation data") && error.contains("valid.jsonl"),
        "{error}"
    );
    assert!(!place.path("run").exists());
}

#[test]
fn a_resumed_run_keeps_what_it_must() {
    let place = Place::new();
    let config = place.config("lora", &[]);
    let (cpu, dir) = (Device::cpu(), place.path("run"));
    let start = |c: &RunConfig| Run::start(place.parts(c, &cpu), Some(&dir));
    start(&config).unwrap().go(&Stop::at(Some(2)), &mut ()).unwrap();
    let stored = StoredRun::open(&dir, &Methods::builtin()).unwrap();
    let changes = stored
        .changes(&place.config("lora", &[("learning_rate", json!(0.5)), ("steps", json!(30))]))
        .unwrap();
    assert_eq!(changes, ["train.learning_rate: 0.01 -> 0.5", "train.steps: 20 -> 30"]);
    let e = stored
        .changes(&place.config("lora", &[("r", json!(4)), ("seed", json!(1))]))
        .unwrap_err()
        .to_string();
    assert!(e.contains("options.r: 2 -> 4; train.seed: 0 -> 1") && e.contains("train.learning_rate"), "{e}");
    // Other data, another model.
    write_data(&place.path("data"), 21);
    let e = Run::resume(stored, place.parts(&config, &cpu), &mut ()).err().unwrap().to_string();
    assert!(e.contains("training data") && e.contains("fingerprint"), "{e}");
    let e = start(&config).err().unwrap().to_string();
    assert!(e.contains("already holds a run"), "{e}");
}

#[test]
fn a_resumed_run_keeps_its_frozen_rows() {
    let place = Place::new();
    let config = place.config("lora", &[]);
    let cpu = Device::cpu();
    let dir = place.path("run");
    let first = |run: &Run| run.session.adapter.trainable()[0].clone();
    let mut run = Run::start(place.parts(&config, &cpu), Some(&dir)).unwrap();
    let part = first(&run).parts()[0].0.clone();
    first(&run).freeze_rows(&part, 1..2).unwrap();
    let width = first(&run).value().shape().last();
    let before = first(&run).value().to_f32().unwrap();
    run.go(&Stop::at(Some(2)), &mut ()).unwrap();
    drop(run);
    let stored = StoredRun::open(&dir, &Methods::builtin()).unwrap();
    let mut run = Run::resume(stored, place.parts(&config, &cpu), &mut ()).unwrap();
    assert_eq!(first(&run).frozen_by_part(), vec![(part, 1..2)]);
    run.go(&Stop::at(Some(4)), &mut ()).unwrap();
    let after = first(&run).value().to_f32().unwrap();
    assert_eq!(before[width..2 * width], after[width..2 * width]);
    assert_ne!(before[..width], after[..width]);
}

#[test]
fn a_diverging_run_stops_and_keeps_what_explains_it() {
    let place = Place::new();
    let config = place.config("lora", &[("learning_rate", json!(1e30)), ("max_grad_norm", json!(0.0))]);
    let (cpu, dir) = (Device::cpu(), place.path("run"));
    let mut run = Run::start(place.parts(&config, &cpu), Some(&dir)).unwrap();
    let e = run.go(&Stop::default(), &mut ()).unwrap_err();
    assert!(matches!(e, mixlora::Error::Diverged(_)), "{e}");
    let text = e.to_string();
    assert!(text.contains("step 2") && text.contains("layer 0") && text.contains("diverged"), "{text}");
    let about = std::fs::read_to_string(dir.join("diverged/state.json")).unwrap();
    assert!(about.contains("\"lines\""), "{about}");
    let config = place.config("lora", &[("learning_rate", json!(1e30)), ("max_skipped", json!(50))]);
    let mut seen = Seen::default();
    let mut run = Run::start(place.parts(&config, &cpu), None).unwrap();
    run.go(&Stop::default(), &mut seen).unwrap();
    assert!(run.state().skipped > 0 && seen.warnings[0].contains("left out"), "{:?}", seen.warnings);
    assert!(seen.evals.iter().all(|e| e.1.is_finite() || !e.2), "{:?}", seen.evals);
}

#[test]
fn examples_without_a_prompt_are_refused_by_line() {
    let place = Place::new();
    let data = place.path("empty.jsonl");
    std::fs::write(
        &data,
        "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"\", \"completion\": \"b\"}\n",
    )
    .unwrap();
    let cpu = Device::cpu();
    for (pool, refused) in [("prompt_mask", true), ("real", false)] {
        let config = place.config("mixlora-cond", &[("pool", json!(pool)), ("data", json!(data))]);
        let started = Run::start(place.parts(&config, &cpu), None).err().map(|e| e.to_string());
        assert_eq!(started.is_some(), refused, "{pool}: {started:?}");
        assert!(started.is_none_or(|e| e.contains("1 examples") && e.contains("lines 2")));
    }
    // Methods that do not route by instance have no use for a prompt.
    for method in ["lora", "smora", "rank-wise", "mixlora-ffn", "flylora"] {
        let config = place.config(method, &[("data", json!(data)), ("micro_batch", json!(2))]);
        let mut run = Run::start(place.parts(&config, &cpu), None).unwrap();
        run.step(&mut ()).unwrap().unwrap_or_else(|| panic!("{method}: a step"));
    }
    // Plain text routes on all of its positions.
    std::fs::write(&data, "{\"text\": \"abc\"}\n").unwrap();
    let config = place.config("mixlora-cond", &[("data", json!(data))]);
    Run::start(place.parts(&config, &cpu), None).unwrap().step(&mut ()).unwrap().unwrap();
}

/// Runs two steps of a method with long lines of one length, so that activations are what counts. Returns what was planned
/// over what was measured, where that is not near 1.
fn far_from_the_plan(place: &Place, method: &str, changes: &[(&str, Value)]) -> Option<String> {
    let mut changes = changes.to_vec();
    changes.extend([("grad_accumulation", json!(1)), ("allow_untrained_eos", json!(true))]);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny");
    let line = "x".repeat(196);
    let line = |task: &str| {
        json!({ "prompt": "abc", "completion": line, "task": task, "condition": "a text" }).to_string() + "\n"
    };
    std::fs::write(place.path("data/train.jsonl"), ["one", "two"].map(line).concat().repeat(8)).unwrap();
    // The other lines of the place have no conditions.
    let _ = std::fs::remove_file(place.path("data/valid.jsonl"));
    let cpu = Device::cpu();
    if find(method).unwrap().defaults().options().takes_experts() == TakesExperts::Needed {
        let lora = place.config_of(&model, "lora", &changes);
        let experts = ["one", "two", "three"].map(|name| place.path(name).to_string_lossy().into_owned());
        for expert in experts.iter().filter(|expert| !Path::new(expert).exists()) {
            let mut run = Run::start(place.parts(&lora, &cpu), Some(Path::new(expert))).unwrap();
            run.save(&mut (), false).unwrap();
        }
        changes.push(("experts", json!(experts)));
    }
    let config = place.config_of(&model, method, &changes);
    let config = Inputs::read(config).unwrap().config;
    let cpu = Device::cpu();
    let mut run = Run::start(place.parts(&config, &cpu), None).unwrap();
    run.step(&mut ()).unwrap();
    run.step(&mut ()).unwrap();
    let files = mixlora::model::ModelFiles::open(&config.model).unwrap();
    let plan = mixlora::train::Plan::new(&files, &config, 200, Some(&cpu)).unwrap();
    let measured = cpu.memory().unwrap().peak() as f64;
    let ratio = plan.total() as f64 / measured;
    let what = format!("{method} {changes:?}: planned / measured = {ratio:.3}, {measured}, {plan:?}");
    (!(0.9..1.1).contains(&ratio)).then_some(what)
}

#[test]
fn the_plan_is_near_the_measured_peak_for_every_method() {
    let place = Place::new();
    let mut far = Vec::new();
    // One that adapts the experts of a model has nothing to do here.
    let takes = |spec: &&&'static MethodSpec| !spec.defaults().options().takes(SitePart::Expert);
    for spec in Methods::builtin().all().iter().filter(takes) {
        for recompute in [false, true] {
            let changes = [("micro_batch", json!(8)), ("recompute", json!(recompute))];
            far.extend(far_from_the_plan(&place, spec.name, &changes));
        }
    }
    assert!(far.is_empty(), "{far:#?}");
}

#[test]
fn the_plan_is_near_the_measured_peak_with_other_options() {
    let place = Place::new();
    let mut far = Vec::new();
    let batch = |n: usize| ("micro_batch", json!(n));
    let dropout = ("lora_dropout", json!(0.1));
    for (method, changes) in [
        ("lora", vec![]),
        ("mixlora-cond", vec![("num_factors", json!(16)), batch(8)]),
        ("mixlora-cond-gated", vec![batch(16)]),
        ("mixlora-cond", vec![("use_contrastive_instr_token", json!(true)), batch(8)]),
        ("mixlora-cond-gated", vec![("use_contrastive_instr_token", json!(true)), batch(4)]),
        ("mixlora-ffn", vec![("variant", json!("dynamic")), batch(4)]),
        ("mixlora-ffn", vec![("variant", json!("switch")), batch(8)]),
        ("mixlora-ffn", vec![dropout.clone(), batch(8)]),
        ("block-moe", vec![dropout.clone(), batch(8)]),
        ("hydra", vec![("lora_dropout", json!(0)), batch(8)]),
        ("llava-mole", vec![("dense", json!(true)), batch(8)]),
        ("comol", vec![dropout, batch(8)]),
        ("ept", vec![("recompute", json!(true)), batch(8)]),
    ] {
        far.extend(far_from_the_plan(&place, method, &changes));
    }
    assert!(far.is_empty(), "{far:#?}");
}

// Out of memory in the middle of a run.
#[test]
fn a_budget_that_is_reached_in_a_run_loses_nothing() {
    let place = Place::new();
    let config = place.config("lora", &[("save_every", json!(1))]);
    let (cpu, dir) = (Device::cpu(), place.path("run"));
    let mut run = Run::start(place.parts(&config, &cpu), Some(&dir)).unwrap();
    run.go(&Stop::at(Some(3)), &mut ()).unwrap();
    let memory = cpu.memory().unwrap();
    memory.set_budget(memory.current() + 1000);
    let e = run.go(&Stop::default(), &mut ()).unwrap_err();
    assert!(matches!(e, mixlora::Error::OutOfMemory { .. }), "{e}");
    drop(run);
    let stored = StoredRun::open(&dir, &Methods::builtin()).unwrap();
    let mut run = Run::resume(stored, place.parts(&config, &Device::cpu()), &mut ()).unwrap();
    assert_eq!(run.state().step, 3);
    assert_eq!(run.go(&Stop::default(), &mut ()).unwrap(), End::Finished);
}

// The device is lost between two steps; the run goes on on another one.
#[cfg(feature = "gpu")]
#[test]
fn a_lost_device_leaves_the_last_checkpoint() {
    let Some(gpu) = crate::common::gpu() else { return };
    let place = Place::new();
    let config = place.config("mixlora-cond", &[("save_every", json!(1))]);
    let dir = place.path("run");
    let mut run = Run::start(place.parts(&config, &gpu), Some(&dir)).unwrap();
    run.go(&Stop::at(Some(2)), &mut ()).unwrap();
    let Device::Gpu(inner) = &gpu else { panic!("a GPU is one") };
    inner.raw().0.destroy();
    let e = run.step(&mut ()).unwrap_err();
    assert!(matches!(e, mixlora::Error::DeviceLost(_)), "{e}");
    drop(run);
    let stored = StoredRun::open(&dir, &Methods::builtin()).unwrap();
    let mut run = Run::resume(stored, place.parts(&config, &Device::cpu()), &mut ()).unwrap();
    assert_eq!(run.state().step, 2);
    assert_eq!(run.go(&Stop::at(Some(4)), &mut ()).unwrap(), End::Stopped);
}
