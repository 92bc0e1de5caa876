//! `mixlora train` as a user meets it: signals, crashes, full disks, wrong settings. Numbers of bad inputs are those
//! of docs/FORMATS.md.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use crate::common::cli::output;
use crate::common::tiny::{write_data, write_text_model};
use mixlora::adapter::pointed;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_text_model(&dir.path().join("model"));
        write_data(&dir.path().join("data"), 20);
        Place(dir)
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }
    /// `train` on the tiny model, with options that suit it.
    fn train(&self, more: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_mixlora"));
        c.env("MIXLORA_DEVICE", "cpu");
        c.args(["train", "--model", &self.text("model"), "--data", &self.text("data")]);
        c.args(["--set", "r=2", "--eval-every", "1000000"]).args(more);
        for (option, value) in [("--micro-batch", "2"), ("--threads", "1")] {
            if !more.contains(&option) {
                c.args([option, value]);
            }
        }
        c
    }
    fn resume(&self, run: &str, more: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_mixlora"));
        c.env("MIXLORA_DEVICE", "cpu");
        c.args(["train", "--resume", &self.text(run)]).args(more);
        c
    }
}

/// Waits until a run has written something.
fn wait_for(path: &Path, child: &mut Child) {
    let began = Instant::now();
    while !path.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before {} was there", path.display());
        assert!(began.elapsed() < Duration::from_secs(60), "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn quiet(c: &mut Command) -> Child {
    c.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn last_step(run: &Path) -> u64 {
    let dir = pointed(&run.join("last")).unwrap();
    dir.file_name().unwrap().to_str().unwrap()["step-".len()..].parse().unwrap()
}

// Rows 50 and 52: killed at any moment, the last complete checkpoint loads, and training goes on.
#[test]
fn fifty_kills_lose_nothing() {
    let place = Place::new();
    let run = place.path("run");
    let endless = ["--steps", "1000000", "--save-every", "1"];
    let mut child = quiet(place.train(&endless).args(["--out", &place.text("run")]));
    wait_for(&run.join("last"), &mut child);
    let pause = mixlora::Stream::new(5);
    let mut before = 0;
    for i in 0..50 {
        std::thread::sleep(Duration::from_micros(u64::from(pause.bits(i)) % 120_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = last_step(&run);
        assert!(now >= before, "step {now} after step {before}");
        before = now;
        let dir = mixlora::adapter::locate(&run.join("last")).unwrap();
        assert!(dir.join("optimizer.safetensors").exists());
        child = quiet(&mut place.resume("run", &[]));
        // It has the lock, and has gone on, when it has written a line.
        let began = Instant::now();
        let lines = || std::fs::read_to_string(run.join("metrics.jsonl")).unwrap().matches("resume").count();
        while lines() <= i as usize {
            assert!(child.try_wait().unwrap().is_none(), "kill {i}: it does not go on");
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let goal = (last_step(&run) + 2).to_string();
    let (out, _) = output(&mut place.resume("run", &["--stop-at", &goal]), 0);
    assert!(out.contains(&format!("stopped at step {goal}")), "{out}");
    let left: Vec<_> = std::fs::read_dir(&run).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().contains(".tmp")), "{left:?}");
}

/// A process that is killed between its last save and the removal of older checkpoints leaves them behind.
#[test]
fn resuming_removes_checkpoints_that_are_not_kept() {
    let place = Place::new();
    let options = ["--steps", "6", "--save-every", "1", "--stop-at", "3", "--set", "train.keep=3"];
    output(place.train(&options).args(["--out", &place.text("run")]), 0);
    output(&mut place.resume("run", &["--stop-at", "3", "--set", "train.keep=1"]), 0);
    let left: Vec<u64> =
        (1..=6).filter(|n| place.path("run").join(format!("step-{n:06}")).exists()).collect();
    assert_eq!(left, [3]);
}

// Signals during a run, and a second process in its folder.
#[cfg(unix)]
#[test]
fn signals_finish_the_step_and_save() {
    let place = Place::new();
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let name = format!("run-{signal}");
        let out = place.text(&name);
        let mut child = quiet(&mut place.train(&["--steps", "1000000", "--save-every", "50", "--out", &out]));
        wait_for(&place.path(&name).join("last"), &mut child);
        let (_, err) = output(&mut place.resume(&name, &[]), 3);
        assert!(err.contains(&format!("process {} trains there", child.id())), "{err}");
        let sent =
            Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        assert_eq!(child.wait().unwrap().code(), Some(code));
        let metrics = std::fs::read_to_string(place.path(&name).join("metrics.jsonl")).unwrap();
        let steps = metrics.lines().filter(|l| l.contains("\"t\":\"step\"")).count() as u64;
        assert_eq!(last_step(&place.path(&name)), steps, "the last step is saved");
    }
}

// A limit on the size of files simulates a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_checkpoint() {
    let place = Place::new();
    output(
        place
            .train(&["--steps", "6", "--save-every", "1", "--stop-at", "2"])
            .args(["--out", &place.text("run")]),
        0,
    );
    let script = "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"";
    let mut limited = Command::new("bash");
    limited.env("MIXLORA_DEVICE", "cpu").args([
        "-c",
        script,
        env!("CARGO_BIN_EXE_mixlora"),
        "train",
        "--resume",
        &place.text("run"),
    ]);
    let (_, err) = output(&mut limited, 1);
    assert!(
        err.contains("no checkpoint was written, training goes on") && err.contains("cannot be written"),
        "{err}"
    );
    assert!(err.contains("the last checkpoint could not be written"), "{err}");
    assert_eq!(last_step(&place.path("run")), 2);
    mixlora::adapter::locate(&place.path("run").join("last")).unwrap();
    let (out, _) = output(&mut place.resume("run", &[]), 0);
    assert!(out.contains("adapter in"), "{out}");
    assert_eq!(last_step(&place.path("run")), 6);
}

// Settings that cannot work, and places that cannot be written.
#[test]
fn wrong_settings_are_named() {
    let place = Place::new();
    std::fs::write(place.path("file"), "").unwrap();
    std::fs::write(place.path("typo.toml"), "[train]\nlearning_rat = 1e-3\n").unwrap();
    std::fs::write(place.path("broken.toml"), "[train\n").unwrap();
    std::fs::write(place.path("kind.toml"), "[train]\nkeep = \"four\"\n").unwrap();
    let set = |pair: &str| vec!["--set".to_string(), pair.to_string()];
    let option = |name: &str, value: &str| vec![format!("--{name}"), value.to_string()];
    let config = |name: &str| vec!["--config".to_string(), place.text(name)];
    for (more, code, expected) in [
        (set("r=0"), 3, "options.r: is 0, must be at least 1"),
        (set("r=65"), 3, "is 16, must be at least r (65)"),
        ([set("num_factors=99"), set("r=65")].concat(), 3, "is 65, must be in 1..="),
        (set("r=2.5"), 3, "options.r: invalid type: floating point"),
        ([set("num_factors=4"), set("r=8")].concat(), 3, "num_factors: is 4, must be at least r (8)"),
        (set("lora_dropout=1"), 3, "options.lora_dropout: is 1, must be in [0, 1)"),
        ([option("method", "smora"), set("top_k=0")].concat(), 3, "options.top_k: is 0"),
        ([option("method", "smora"), set("top_k=65")].concat(), 3, "must be at least top_k (65)"),
        (option("targets", "q_porj"), 3, "'q_porj' matches nothing; there are q_proj"),
        (option("targets", "embed_tokens"), 3, "'embed_tokens' matches nothing"),
        (option("learning-rate", "0"), 3, "train.learning_rate: is 0, must be a positive number"),
        (option("learning-rate", "NaN"), 3, "train.learning_rate"),
        (option("learning-rate", "inf"), 3, "train.learning_rate"),
        ([option("steps", "3"), option("warmup-steps", "4")].concat(), 3, "is 4, must be at most steps (3)"),
        (option("micro-batch", "0"), 3, "train.micro_batch: is 0, must be at least 1"),
        (option("grad-accumulation", "0"), 3, "train.grad_accumulation: is 0"),
        (option("patience", "0"), 3, "train.patience: is 0, must be at least 1"),
        (
            option("min-learning-rate", "0.1"),
            3,
            "train.min_learning_rate: is 0.1, must be in 0..=learning_rate (0.001)",
        ),
        (set("decay_share=0"), 3, "train.decay_share: is 0, must be above 0 and at most 1"),
        (set("train.restarts=0"), 3, "train.restarts: is 0, must be at least 1"),
        (
            [option("steps", "3"), option("schedule", "cosine_restarts")].concat(),
            3,
            "train.restarts: is 4, must be at most",
        ),
        (option("schedule", "cosin"), 2, "cosine_restarts"),
        (set("epochs=-1"), 3, "train.epochs: is -1, must be a positive number"),
        (set("learning_rat=1"), 2, "did you mean 'learning_rate'?"),
        (set("train.stpes=1"), 3, "train.stpes: is unknown; did you mean 'steps'?"),
        (set("lr"), 2, "KEY=VALUE is needed"),
        (config("typo.toml"), 3, "typo.toml: train.learning_rat: is unknown; did you mean 'learning_rate'?"),
        (config("broken.toml"), 3, "broken.toml: TOML parse error at line 1"),
        (config("kind.toml"), 3, "train.keep: invalid type: string \"four\""),
        (config("none.toml"), 3, "none.toml: cannot be read"),
        (option("method", "mixlroa"), 3, "'mixlroa' is unknown; known are lora"),
        (option("memory-budget", "lots"), 3, "is 'lots', must be a size such as 4GiB"),
        (option("threads", "0"), 3, "threads: is 0"),
        (option("device", "no such adapter"), 4, "no such adapter"),
        (option("resume", &place.text("data")), 3, "holds no run"),
    ] {
        let resumes = more[0] == "--resume";
        let out = place.text("run");
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let mut c = place.train(&more);
        if !resumes {
            c.args(["--out", &out]);
        }
        let (_, err) = output(&mut c, code);
        assert!(err.contains(expected), "{more:?}: {err}");
        assert!(!place.path("run").exists(), "{more:?}: nothing is made for a mistyped option");
    }
    for (out, expected) in [("file", "is a file; a run needs a folder"), ("file/run", "cannot be created")] {
        let (_, err) = output(place.train(&["--steps", "1"]).args(["--out", &place.text(out)]), 3);
        assert!(err.contains(expected), "{err}");
    }
    let (_, err) = output(&mut place.train(&["--steps", "1"]), 2);
    assert!(err.contains("--out is needed"), "{err}");
}

// A run that exceeds the memory budget is refused before the model is loaded, with settings that would fit; a run that
// exceeds it later keeps its checkpoints.
#[test]
fn memory_budgets_hold() {
    let place = Place::new();
    let text = format!("{{\"text\": \"{}\"}}\n", "abcdefg ".repeat(50));
    std::fs::write(place.path("data/train.jsonl"), text.repeat(8)).unwrap();
    let long = ["--steps", "2", "--micro-batch", "8", "--memory-budget", "12MiB"];
    let (_, err) = output(place.train(&long).args(["--out", &place.text("run")]), 5);
    assert!(err.contains("activations") && err.contains("does not fit into the budget of 12.0 MiB"), "{err}");
    assert_eq!(err.lines().filter(|l| l.starts_with("  --")).count(), 3, "three settings: {err}");
    assert!(!place.path("run").exists());
    // One of them, taken at its word.
    let line = err.lines().find(|l| l.starts_with("  --") && !l.contains("too much")).unwrap();
    let mut settings: Vec<&str> = line.trim().split(':').next().unwrap().split(' ').collect();
    if !settings.contains(&"--micro-batch") {
        settings.extend(["--micro-batch", "8"]);
    }
    let mut c = Command::new(env!("CARGO_BIN_EXE_mixlora"));
    c.env("MIXLORA_DEVICE", "cpu");
    c.args(["train", "--model", &place.text("model"), "--data", &place.text("data"), "--set", "r=2"]);
    c.args(["--steps", "2", "--memory-budget", "12MiB", "--out", &place.text("fits")]).args(&settings);
    output(&mut c, 0);
}

// Paths with spaces and letters of all kinds, and a closed pipe.
#[test]
fn odd_paths_and_closed_pipes() {
    let place = Place::new();
    let name = "zwei Wörter – 三";
    output(place.train(&["--steps", "2"]).args(["--out", &place.text(name)]), 0);
    mixlora::adapter::locate(&place.path(name)).unwrap();
    let mut child = place
        .train(&["--steps", "2", "--json", "--quiet"])
        .args(["--out", &place.text("piped")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn patience_says_that_it_ended_a_run() {
    let place = Place::new();
    let valid = std::fs::read_to_string(place.path("data/valid.jsonl")).unwrap();
    std::fs::write(place.path("data/valid.jsonl"), valid.replace("ab", "QZQZQZQZQZ")).unwrap();
    let options = ["--steps", "400", "--patience", "2", "--learning-rate", "1e-2", "--eval-every", "2"];
    let mut c = Command::new(env!("CARGO_BIN_EXE_mixlora"));
    c.env("MIXLORA_DEVICE", "cpu").args([
        "train",
        "--model",
        &place.text("model"),
        "--data",
        &place.text("data"),
    ]);
    c.args(["--set", "r=2", "--micro-batch", "2", "--threads", "1", "--out", &place.text("run")])
        .args(options);
    let (out, _) = output(&mut c, 0);
    let said = out
        .lines()
        .find(|line| line.starts_with("stopped after 2 validations without a better loss"))
        .unwrap();
    let step = last_step(&place.path("run"));
    assert!(step < 400);
    let best = format!("best at step {}", step - 4);
    assert!(said.contains(&best) && said.contains(&format!("at step {step} of 400")), "{out}");
    assert!(out.contains("adapter in"), "{out}");
    let (out, _) = output(&mut place.resume("run", &[]), 0);
    assert!(out.contains("this run had ended") && out.contains(said), "{out}");
    let (out, _) = output(&mut place.resume("run", &["--json"]), 0);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["finished"], &report["ended_by"]), (&true.into(), &"patience".into()));
    let (out, err) = output(&mut place.resume("run", &["--patience", "3"]), 0);
    assert!(err.contains("changed: train.patience: 2 -> 3"), "{err}");
    assert!(out.contains("stopped after 3 validations without a better loss"), "{out}");
    assert_eq!(last_step(&place.path("run")), step + 2);
    let last = (step + 5).to_string();
    let more = ["--set", "train.patience=null", "--stop-at", &last];
    let (out, _) = output(&mut place.resume("run", &more), 0);
    assert!(out.contains(&format!("stopped at step {last} of 400")), "{out}");
    std::fs::remove_file(place.path("data/valid.jsonl")).unwrap();
    let (_, err) = output(place.train(&["--patience", "2"]).args(["--out", &place.text("other")]), 3);
    assert!(err.contains("train.patience: needs validation data"), "{err}");
}

#[test]
fn the_command_line_resumes_to_the_same_bytes() {
    let place = Place::new();
    let bytes = |run: &str| {
        std::fs::read(place.path(run).join("step-000008").join("adapter_model.safetensors")).unwrap()
    };
    let eight = ["--steps", "8", "--save-every", "3"];
    let (out, _) = output(place.train(&eight).args(["--json", "--out", &place.text("whole")]), 0);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    let metrics = std::fs::read_to_string(place.path("whole/metrics.jsonl")).unwrap();
    let eval = metrics.lines().find(|l| l.contains("\"t\":\"eval\"")).unwrap();
    let scores = &serde_json::from_str::<serde_json::Value>(eval).unwrap()["scores"];
    let names: Vec<&String> = scores.as_object().unwrap().keys().collect();
    assert_eq!(names, ["exact match", "exact match of one", "exact match of two"], "{eval}");
    assert_eq!((&report["finished"], &report["step"]), (&true.into(), &8.into()));
    output(place.train(&eight).args(["--stop-at", "4", "--out", &place.text("parts")]), 0);
    let (out, err) = output(&mut place.resume("parts", &["--set", "train.keep=3"]), 0);
    assert!(err.contains("changed: train.keep: 2 -> 3") && out.contains("adapter in"), "{out}{err}");
    assert!(bytes("whole") == bytes("parts"));
    let (_, err) = output(&mut place.resume("parts", &["--set", "r=3"]), 3);
    assert!(err.contains("options.r: 2 -> 3") && err.contains("cannot change"), "{err}");
    // A run takes another place in the file system along.
    std::fs::rename(place.path("parts"), place.path("moved")).unwrap();
    output(&mut place.resume("moved", &["--steps", "10"]), 0);
    assert_eq!(last_step(&place.path("moved")), 10);
}
