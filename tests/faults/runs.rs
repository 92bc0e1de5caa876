//! Runs, paths and arguments.

use crate::common::cli::{answer_to, mixlora, output};
use crate::common::tiny::{write_data, write_text_model};
use mixlora::adapter::pointed;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A folder with the tiny text model and its data.
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
    fn metrics(&self, run: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }
}

#[test]
fn checkpoint_replaced_by_itself() {
    let place = Place::new();
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
    let place = Place::new();
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
    let place = Place::new();
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

#[test]
fn run_json_has_no_checksum() {
    let place = Place::new();
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
    let place = Place::new();
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
    output(mixlora(&args).current_dir(place.0.path()), 0);
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
    let place = Place::new();
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
    let place = Place::new();
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
    for method in mixlora::mixture::ALL.iter().map(|m| m.name) {
        let (out, _) = output(plan(&["--method", method, "--set", "r=8", "--json"]), 0);
        let planned: Value = serde_json::from_str(&out).unwrap();
        assert!(planned["bytes"]["adapter"].as_u64() > Some(0) && planned["fits"] == true, "{method}: {out}");
    }
}

#[test]
fn dash_prompt() {
    let place = Place::new();
    let model = place.text("model");
    for prompt in ["- Hi", "-1", "---\nfront matter", "--raw", "-n"] {
        let (out, _) = output(mixlora(&["generate", "--model", &model, "--prompt", prompt, "-n", "1"]), 0);
        let (same, _) =
            output(mixlora(&["generate", "--model", &model, &format!("--prompt={prompt}"), "-n", "1"]), 0);
        assert_eq!(out, same);
    }
    let args = [
        "generate",
        "--model",
        &model,
        "hi",
        "--system",
        "- be brief",
        "--stop",
        "--",
        "--max-new-tokens",
        "1",
    ];
    output(mixlora(&args), 0);
    answer_to(&["chat", "--model", &model, "--system", "-", "--max-tokens", "1"], "hi\n", 0);
    // The prompt by its place, and from standard input.
    let (out, _) = output(mixlora(&["generate", "--model", &model, "-n", "3", "hi"]), 0);
    let (piped, _) = answer_to(&["generate", "--model", &model, "-n", "3", "-"], "hi", 0);
    assert_eq!(out, piped);
    output(mixlora(&["generate", "--model", &model]), 2);
    // Numbers below zero are numbers.
    for (option, value) in [("--max-length", "-1"), ("--seed", "-7"), ("--steps", "-1")] {
        let (_, err) = output(place.train("run", &[option, value]), 2);
        assert!(err.contains(&format!("invalid value '{value}' for '{option}")), "{err}");
    }
    for (option, value) in [("--learning-rate", "-1e-3"), ("--weight-decay", "-1"), ("--epochs", "-2")] {
        let (_, err) = output(place.train("run", &[option, value]), 3);
        assert!(err.contains("train."), "{err}");
    }
}

#[test]
fn threads_without_bound() {
    let place = Place::new();
    let model = place.text("model");
    let began = Instant::now();
    for threads in ["5000", "100000", "1000000000", "0"] {
        let (_, err) = output(
            mixlora(&["generate", "--model", &model, "--prompt", "Hi", "-n", "1", "--threads", threads]),
            2,
        );
        assert!(err.contains(&format!("--threads: is {threads}, must be in 1..=")), "{err}");
    }
    let (_, err) = output(place.train("run", &["--set", "device.threads=5000"]), 3);
    assert!(err.contains("device.threads: is 5000, must be in 1..="), "{err}");
    std::fs::write(place.path("run.toml"), "[device]\nthreads = 5000\n").unwrap();
    let (_, err) = output(mixlora(&["config", "check", &place.text("run.toml")]), 3);
    assert!(err.contains("device.threads: is 5000"), "{err}");
    assert!(mixlora::Device::cpu_with_threads(5000).is_err());
    let mut c = mixlora(&["generate", "--model", &model, "--prompt", "Hi", "-n", "1"]);
    let (_, err) = output(c.env("RAYON_NUM_THREADS", "5000"), 2);
    assert!(err.contains("RAYON_NUM_THREADS: threads: is 5000, must be in 1..="), "{err}");
    output(c.env("RAYON_NUM_THREADS", "2"), 0);
    assert!(began.elapsed() < Duration::from_secs(30));
    output(mixlora(&["generate", "--model", &model, "--prompt", "Hi", "-n", "1", "--threads", "64"]), 0);
}

// A file or run of a stranger, or of a machine with more cores.
#[test]
fn threads_without_a_limit() {
    let place = Place::new();
    output(place.train("run", &["--steps", "2", "--stop-at", "1"]), 0);
    place.edit("run/run.json", "\"threads\": 1", "\"threads\": 100000");
    let text = std::fs::read_to_string(place.path("run/run.json")).unwrap();
    let rest: Vec<&str> = text.lines().filter(|l| !l.contains("crc32")).collect();
    std::fs::write(place.path("run/run.json"), rest.join("\n")).unwrap();
    let (_, err) = output(place.resume("run", &[]), 3);
    assert!(err.contains("device.threads: is 100000, must be in 1..="), "{err}");
    output(place.resume("run", &["--threads", "1"]), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn path_not_utf8() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let place = Place::new();
    let odd = |name: &str| place.0.path().join(OsString::from_vec([name.as_bytes(), b"\xff"].concat()));
    for name in ["model", "data"] {
        std::fs::create_dir(odd(name)).unwrap();
        for entry in std::fs::read_dir(place.path(name)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, odd(name).join(path.file_name().unwrap())).unwrap();
        }
        let option = format!("--{name}");
        let (_, err) = output(place.train("run", &["--steps", "1", "--json"]).arg(&option).arg(odd(name)), 2);
        assert!(err.contains("cannot be used multiple times"), "{err}");
        for command in ["train", "plan"] {
            let mut c = mixlora(&[command, &option]);
            c.arg(odd(name)).args(["--out", &place.text("run")]);
            let (_, err) = output(c, 2);
            assert!(err.contains(&option) && err.contains("is not UTF-8"), "{err}");
        }
    }
    let mut c = mixlora(&["data", "check", "--json"]);
    output(c.arg(odd("data")), 0);
    let mut c = mixlora(&["generate", "--prompt", "hi", "-n", "1", "--model"]);
    output(c.arg(odd("model")), 0);
    // The folder of a run may have any name, and so may the one where the program is run.
    let mut c = mixlora(&["train", "--model", &place.text("model"), "--data", &place.text("data"), "--json"]);
    let (out, _) = output(c.args(["--steps", "2", "--stop-at", "1", "--out"]).arg(odd("run")), 0);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["step"], 1);
    let mut c = mixlora(&["train", "--resume"]);
    output(c.arg(odd("run")).current_dir(odd("data")), 0);
    let mut c = mixlora(&["train", "--model", "../model", "--data", ".", "--out", "../run3", "--steps", "1"]);
    output(c.current_dir(odd("data")), 0);
}

/// What the program writes to a terminal.
#[cfg(target_os = "linux")]
fn on_a_terminal(args: &[&str]) -> String {
    let line: Vec<String> = args.iter().map(|a| format!("'{a}'")).collect();
    let line = format!("{} {}", env!("CARGO_BIN_EXE_mixlora"), line.join(" "));
    let done = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output();
    String::from_utf8_lossy(&done.expect("script is part of Debian").stdout).replace("\r\n", "\n")
}

#[cfg(target_os = "linux")]
#[test]
fn names_of_a_file_reach_the_terminal() {
    let place = Place::new();
    let odd = "\u{1b}]0;owned\u{7}\u{1b}[31m\rred\u{9b}2J";
    let shown = r"\x1b]0;owned\x07\x1b[31m\x0dred\x9b2J";
    // A tensor's name on stdout.
    let header =
        serde_json::json!({ odd: { "dtype": "F32", "shape": [1], "data_offsets": [0, 4] } }).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat();
    std::fs::write(place.path("odd.safetensors"), bytes).unwrap();
    let file = place.text("odd.safetensors");
    let text = on_a_terminal(&["inspect", &file, "--tensors"]);
    assert!(text.contains(shown) && !text.contains('\u{1b}'), "{text:?}");
    let (piped, _) = output(mixlora(&["inspect", &file, "--tensors"]), 0);
    assert!(piped.contains(odd), "a pipe gets what is there");
    // Names in messages, and samples.
    let sample = |role: &str| {
        let turns =
            serde_json::json!([{ "role": role, "content": odd }, { "role": "assistant", "content": odd }]);
        serde_json::json!({ "messages": turns }).to_string()
    };
    std::fs::write(place.path("bad.jsonl"), sample(odd)).unwrap();
    let text = on_a_terminal(&["data", "check", &place.text("bad.jsonl")]);
    assert!(text.contains(shown) && !text.contains('\u{1b}'), "{text:?}");
    std::fs::write(place.path("good.jsonl"), sample("user")).unwrap();
    let model = place.text("model");
    let text = on_a_terminal(&["data", "show", &place.text("good.jsonl"), "--model", &model]);
    assert!(text.contains(&format!("\u{1b}[7m{shown}")) && text.matches('\u{1b}').count() == 2, "{text:?}");
    // What a model says: this one says bytes by chance, an escape among them.
    let said = on_a_terminal(&["generate", "--model", &model, "hi", "-n", "200", "--temperature", "1"]);
    let acts = |c: char| c.is_control() && c != '\n' && c != '\t';
    assert!(said.contains(r"\x") && !said.contains(acts), "{said:?}");
}

// Names that other programs give to settings.
#[test]
fn settings_of_other_tools_are_named() {
    let place = Place::new();
    for (name, here) in [
        ("lr=1e-3", "train.learning_rate"),
        ("rank=8", "options.r"),
        ("alpha=16", "options.lora_alpha"),
        ("batch_size=4", "train.micro_batch"),
        ("max_seq_length=64", "text.max_length"),
        ("num_train_epochs=1", "train.epochs"),
    ] {
        let (_, err) = output(place.train("run", &["--set", name]), 2);
        assert!(err.contains(&format!("is unknown; here it is {here}")), "{err}");
    }
    std::fs::write(place.path("run.toml"), "[options]\nrank = 8\n").unwrap();
    let (_, err) = output(mixlora(&["config", "check", &place.text("run.toml")]), 3);
    assert!(err.contains("options.rank: is unknown; here it is options.r"), "{err}");
}

// Where no bar is seen, a run still says how it goes.
#[test]
fn a_log_is_not_silent() {
    let place = Place::new();
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
