//! Runs: killed, moved, resumed, without memory.

mod arguments;

use crate::common::cli::{mixlora, output};
use crate::common::tiny::{write_data, write_text_model};
use crate::place::Place;
use mixlora::adapter::pointed;
use mixlora::mixture::{MethodSpec, SitePart};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A place with data to train on.
fn place_with_data() -> Place {
    let place = Place::new();
    write_data(&place.path("data"), 20);
    place
}

impl Place {
    /// A new run in the folder `run`.
    fn train(&self, run: &str, more: &[&str]) -> Command {
        let model = self.text("model");
        let data = self.text("data");
        let run = self.text(run);
        let fixed = ["train", "--model", &model, "--data", &data, "--out", &run, "--eval-every", "1000000"];
        mixlora(&[&fixed[..], &["--set", "r=2", "--threads", "1"], more].concat())
    }
    fn resume(&self, run: &str, more: &[&str]) -> Command {
        mixlora(&[&["train", "--resume", &self.text(run)], more].concat())
    }
    fn adapter(&self, run: &str) -> Vec<u8> {
        let dir = pointed(&self.path(run).join("last")).unwrap();
        std::fs::read(dir.join("adapter_model.safetensors")).unwrap()
    }
    fn edit(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(self.path(name), text.replacen(from, to, 1)).unwrap();
    }
}

#[test]
fn fewer_samples_than_a_batch() {
    let place = place_with_data();
    write_data(&place.path("data"), 1);
    let batch = ["--micro-batch", "8", "--grad-accumulation", "4", "--steps", "2"];
    let (out, err) = output(place.train("run", &batch), 0);
    assert!(format!("{out}{err}").contains("1 examples, 2 steps of 1 examples"), "{out}{err}");
}

#[test]
fn checkpoint_replaced_by_itself() {
    let place = place_with_data();
    let start = ["--steps", "6", "--save-every", "2", "--set", "train.keep=1", "--stop-at", "4"];
    output(place.train("run", &start), 0);
    // Stopped where it is saved, it writes nothing.
    let step = place.path("run/step-000004");
    let written = || std::fs::metadata(step.join("MANIFEST.json")).unwrap().modified().unwrap();
    let before = written();
    output(place.resume("run", &["--stop-at", "4"]), 0);
    assert_eq!(written(), before);
    output(place.train("whole", &["--steps", "6", "--save-every", "2", "--set", "train.keep=1"]), 0);
    // Between the two renames of a replacement.
    for left in ["old", "tmp"] {
        std::fs::rename(&step, step.with_extension(left)).unwrap();
        std::fs::create_dir(step.with_extension("half.tmp")).unwrap();
        output(place.resume("run", &["--stop-at", "4"]), 0);
        assert!(step.join("MANIFEST.json").exists(), "{left}");
        assert!(!step.with_extension(left).exists() && !step.with_extension("half.tmp").exists());
    }
    output(place.resume("run", &[]), 0);
    assert!(place.adapter("run") == place.adapter("whole"));
}

#[test]
fn killed_before_first_checkpoint() {
    let place = place_with_data();
    let endless = ["--steps", "100000", "--save-every", "50000"];
    let mut child = place.train("run", &endless).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    let steps = || std::fs::read_to_string(place.path("run/metrics.jsonl")).unwrap_or_default();
    while !steps().contains("\"t\":\"step\"") {
        assert!(began.elapsed() < Duration::from_secs(60), "it does not train");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What was half-written is no checkpoint.
    std::fs::create_dir(place.path("run/step-000001.tmp")).unwrap();
    output(place.resume("run", &["--steps", "4"]), 0);
    output(place.train("whole", &["--steps", "4", "--save-every", "50000"]), 0);
    assert!(place.adapter("run") == place.adapter("whole"));
    // A run whose checkpoints are all damaged is not begun again in silence.
    std::fs::write(pointed(&place.path("run/last")).unwrap().join("state.json"), "{}").unwrap();
    let (_, err) = output(place.resume("run", &["--steps", "5"]), 3);
    assert!(err.contains("holds no checkpoint to go on from; checkpoint passed over"), "{err}");
}

#[test]
fn resume_other_text() {
    let place = place_with_data();
    output(place.train("run", &["--steps", "4", "--stop-at", "2"]), 0);
    let copy = |name: &str| std::fs::read_to_string(place.path(name)).unwrap();
    let config = copy("model/tokenizer_config.json");
    place.edit("model/tokenizer_config.json", "m['content'] +", "'PLEASE: ' + m['content'] +");
    let (_, err) = output(place.resume("run", &[]), 3);
    assert!(err.contains("the examples have other tokens than when this run began"), "{err}");
    std::fs::write(place.path("model/tokenizer_config.json"), config).unwrap();
    let tokenizer = copy("model/tokenizer.json");
    let swapped = tokenizer
        .replace("\"a\":97", "\"a\":?")
        .replace("\"b\":98", "\"b\":97")
        .replace("\"a\":?", "\"a\":98");
    assert_ne!(swapped, tokenizer);
    std::fs::write(place.path("model/tokenizer.json"), swapped).unwrap();
    output(place.resume("run", &[]), 3);
    std::fs::write(place.path("model/tokenizer.json"), tokenizer).unwrap();
    output(place.resume("run", &[]), 0);
}

/// Writes a tiny model with its values changed, as f16 or as f32.
fn rewrite(folder: &Path, halve: bool, change: impl Fn(&str, f32) -> f32) {
    let file = folder.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let changed: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| {
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(tensor.data());
            let values = values.iter().map(|&value| change(name, value));
            let data: Vec<u8> = if halve {
                values.flat_map(|value| half::f16::from_f32(value).to_le_bytes()).collect()
            } else {
                values.flat_map(f32::to_le_bytes).collect()
            };
            (name, tensor.shape().to_vec(), data)
        })
        .collect();
    let kind = if halve { Dtype::F16 } else { Dtype::F32 };
    let views = changed
        .iter()
        .map(|(name, shape, data)| (*name, TensorView::new(kind, shape.clone(), data).unwrap()));
    let written = safetensors::serialize(views, None).unwrap();
    std::fs::write(file, written).unwrap();
}

// The same base model in another precision is the same one; another one is refused.
#[test]
fn resume_on_an_f16_copy() {
    let place = place_with_data();
    output(place.train("run", &["--steps", "4", "--stop-at", "2"]), 0);
    rewrite(&place.path("model"), true, |_, value| value);
    let (_, err) = output(place.resume("run", &["--stop-at", "3"]), 0);
    assert!(
        err.contains("is not the base model of this run") && err.contains("its norms are the same"),
        "{err}"
    );
    let (_, err) = output(place.resume("run", &["--stop-at", "3"]), 0);
    assert!(!err.contains("warning"), "{err}");
    std::fs::remove_dir_all(place.path("model")).unwrap();
    write_text_model(&place.path("model"));
    rewrite(
        &place.path("model"),
        false,
        |name, value| if name.contains("norm") { 2.0 * value } else { value },
    );
    let (_, err) = output(place.resume("run", &[]), 3);
    assert!(err.contains("was trained on"), "{err}");
}

#[test]
fn run_json_has_no_checksum() {
    let place = place_with_data();
    output(place.train("run", &["--steps", "6", "--stop-at", "2"]), 0);
    let written = std::fs::read_to_string(place.path("run/run.json")).unwrap();
    for (from, to) in [
        ("\"learning_rate\": 0.001", "\"learning_rate\": 0.009"),
        ("\"seed\": 0", "\"seed\": 1"),
        ("\"crc32\": \"", "\"crc32\": \"0"),
    ] {
        place.edit("run/run.json", from, to);
        let (_, err) = output(place.resume("run", &["--stop-at", "3"]), 3);
        assert!(err.contains("run.json: is damaged or was changed by hand"), "{err}");
        std::fs::write(place.path("run/run.json"), &written).unwrap();
    }
    output(place.resume("run", &["--stop-at", "3", "--set", "train.learning_rate=0.002"]), 0);
    // A run of an older version has neither the checksum nor that of the tokens.
    let text = std::fs::read_to_string(place.path("run/run.json")).unwrap();
    let old: Vec<&str> =
        text.lines().filter(|l| !l.contains("\"crc32\"") && !l.contains("\"tokens\"")).collect();
    let old = old.join("\n").replace("\",\n}", "\"\n}");
    assert!(old.len() < text.len());
    std::fs::write(place.path("run/run.json"), old).unwrap();
    output(place.resume("run", &[]), 0);
}

#[test]
fn resume_elsewhere() {
    let place = place_with_data();
    std::fs::copy(place.path("model/tokenizer.json"), place.path("letters.json")).unwrap();
    std::fs::write(place.path("chat.jinja"), "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
        .unwrap();
    let args = [
        "train",
        "--model",
        "model",
        "--data",
        "data",
        "--out",
        "run",
        "--steps",
        "2",
        "--stop-at",
        "1",
        "--threads",
        "1",
        "--set",
        "r=2",
        "--set",
        "text.tokenizer=letters.json",
        "--template",
        "chat.jinja",
    ];
    output(mixlora(&args).current_dir(place.path("")), 0);
    let other = tempfile::tempdir().unwrap();
    let (_, err) = output(place.resume("run", &["--stop-at", "1"]).current_dir(other.path()), 0);
    assert!(!err.contains("changed"), "{err}");
    // The same path from another folder is the same path; the built-in template is no file.
    output(
        place.resume("run", &["--stop-at", "1", "--model", "../model"]).current_dir(place.path("data")),
        0,
    );
    std::fs::rename(place.path("data"), place.path("moved")).unwrap();
    let (_, err) = output(place.resume("run", &[]).current_dir(other.path()), 3);
    assert!(
        err.contains("data: is not there any more: run.json names it; give its new place with --data"),
        "{err}"
    );
    output(place.resume("run", &["--data", &place.text("moved")]).current_dir(other.path()), 0);
}

#[test]
fn collapse_is_told_late() {
    let place = place_with_data();
    // One sample over and over: every router chooses the same.
    let line =
        std::fs::read_to_string(place.path("data/train.jsonl")).unwrap().lines().next().unwrap().to_string();
    std::fs::remove_dir_all(place.path("data")).unwrap();
    std::fs::create_dir(place.path("data")).unwrap();
    std::fs::write(place.path("data/train.jsonl"), format!("{line}\n").repeat(16)).unwrap();
    let (_, err) = output(place.train("run", &["--steps", "40", "--set", "num_factors=4"]), 0);
    assert!(err.contains("use the same factors for every input") && err.contains("in 16 units"), "{err}");
    let metrics = place.metrics("run");
    assert_eq!(metrics.iter().filter(|l| l["t"] == "warn").count(), 1);
    let (_, err) = output(place.train("short", &["--steps", "3", "--set", "num_factors=4"]), 0);
    assert!(!err.contains("use the same factors"), "too few to say so: {err}");
}

#[test]
fn no_look_at_the_machines_memory() {
    let place = place_with_data();
    let began = Instant::now();
    let plan = |more: &[&str]| mixlora(&[&["plan", "--model", &place.text("model")], more].concat());
    let many = ["--set", "num_factors=11000000", "--set", "r=1"];
    let planned = plan(&[&many[..], &["--json"]].concat()).output().unwrap();
    let planned: Value = serde_json::from_slice(&planned.stdout).unwrap();
    let fits = planned["free"].as_u64().is_none_or(|free| planned["total"].as_u64().unwrap() <= free);
    assert_eq!(planned["fits"], fits);
    // More than 100 GB; who has that much is told that it fits.
    if !fits {
        for c in [place.train("run", &many), plan(&many)] {
            let (out, err) = output(c, 5);
            let said = out + &err;
            assert!(said.contains("adapter") && said.contains("that this machine has free"), "{said}");
            assert!(!place.path("run").exists());
        }
    }
    let (_, err) = output(plan(&["--set", "num_factors=1000000000"]), 3);
    assert!(err.contains("options: the adapter is too large") && err.contains("lower num_factors"), "{err}");
    assert!(began.elapsed() < Duration::from_secs(20), "nothing is drawn to be counted");
    // More examples at a time than there are cost nothing; numbers have no bound.
    let endless = usize::MAX.to_string();
    output(place.train("all", &["--steps", "1", "--micro-batch", "1000000000"]), 0);
    output(
        place.train("endless", &["--steps", "1", "--micro-batch", &endless, "--grad-accumulation", &endless]),
        0,
    );
    let (out, _) = output(plan(&["--micro-batch", &endless]), 5 * i32::from(cfg!(target_os = "linux")));
    assert!(out.contains("total"), "{out}");
    // What fits is counted as it was, and a budget takes the place of the machine's memory.
    let (out, _) = output(plan(&[]), 0);
    assert!(!cfg!(target_os = "linux") || out.contains("that this machine has free"), "{out}");
    let (out, _) = output(plan(&[&many[..], &["--memory-budget", "100TiB"]].concat()), 0);
    assert!(out.contains("fits into the budget"), "{out}");
    let adapts_experts = |spec: &&&'static MethodSpec| spec.defaults().options().takes(SitePart::Expert);
    for spec in mixlora::mixture::methods::ALL.iter().filter(|spec| !adapts_experts(spec)) {
        let method = spec.name;
        let rank: &[&str] = if spec.option_names().contains(&"r") { &["--set", "r=8"] } else { &[] };
        let (out, _) = output(plan(&[&["--method", method, "--json"], rank].concat()), 0);
        let planned: Value = serde_json::from_str(&out).unwrap();
        assert!(planned["bytes"]["adapter"].as_u64() > Some(0) && planned["fits"] == true, "{method}: {out}");
    }
}

// Where no bar is seen, a run still says how it goes.
#[test]
fn a_log_is_not_silent() {
    let place = place_with_data();
    let mut child = place.train("run", &["--steps", "1000000", "--save-every", "500000"]);
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let began = Instant::now();
    let said = lines.map_while(Result::ok).find(|l| l.starts_with("step "));
    child.kill().unwrap();
    child.wait().unwrap();
    let said = said.expect("a line about a step");
    assert!(said.contains("of 1000000: loss ") && said.contains("tok/s"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(60));
}
