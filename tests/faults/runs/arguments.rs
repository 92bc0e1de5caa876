//! Arguments, paths and what reaches a terminal.

use super::place_with_data;
use crate::common::cli::{answer_to, mixlora, output};
use std::time::{Duration, Instant};

#[test]
fn dash_prompt() {
    let place = place_with_data();
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
    let place = place_with_data();
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
    let place = place_with_data();
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
    use serde_json::Value;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let place = place_with_data();
    let odd = |name: &str| place.path("").join(OsString::from_vec([name.as_bytes(), b"\xff"].concat()));
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
    use std::process::{Command, Stdio};
    let line: Vec<String> = args.iter().map(|a| format!("'{a}'")).collect();
    let line = format!("{} {}", env!("CARGO_BIN_EXE_mixlora"), line.join(" "));
    let done = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output();
    String::from_utf8_lossy(&done.expect("script is part of Debian").stdout).replace("\r\n", "\n")
}

#[cfg(target_os = "linux")]
#[test]
fn names_of_a_file_reach_the_terminal() {
    let place = place_with_data();
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
    let place = place_with_data();
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

#[test]
fn a_file_of_settings_is_checked_to_its_end() {
    let place = place_with_data();
    let text = "[options]\nr = 0\nno_such_thing = 1\n[train]\nkeep = \"four\"\nepochs = -1\n";
    std::fs::write(place.path("run.toml"), text).unwrap();
    let (_, err) = output(mixlora(&["config", "check", &place.text("run.toml")]), 3);
    let expected = [
        "options.no_such_thing: is no option of mixlora-cond; its options are r, lora_alpha",
        "train.keep: invalid type",
        "options.r: is 0",
        "train.epochs: is -1",
    ];
    for what in expected {
        assert!(err.contains(what), "{what}: {err}");
    }
    assert_eq!(err.lines().count(), expected.len(), "{err}");
}

// A method under the name of its paper, stored under its own.
#[test]
fn methods_have_the_names_of_their_papers() {
    let place = place_with_data();
    output(place.train("run", &["--method", "Conditional-MixLoRA", "--steps", "1"]), 0);
    assert_eq!(place.metrics("run")[0]["config"]["method"], "mixlora-cond");
    let (_, err) = output(place.train("other", &["--method", "mixlora"]), 3);
    assert!(
        err.contains("mixlora-cond") && err.contains("mixlora-ffn") && err.contains("mixlora methods"),
        "{err}"
    );
}

// A model by its name on the Hub: found where it was downloaded, else the way to get it is said.
#[test]
fn models_of_the_hub_are_found_in_its_cache() {
    let place = place_with_data();
    let stats = |home: &str| {
        let mut command = mixlora(&["data", "stats", &place.text("data"), "--model", "Org/Tiny"]);
        command.env_remove("HF_HUB_CACHE").env("HF_HOME", home);
        command
    };
    let (_, err) = output(stats(&place.text("nothing")), 3);
    assert!(err.contains("`hf download Org/Tiny`"), "{err}");
    let snapshots = place.path("hf/hub/models--Org--Tiny/snapshots");
    std::fs::create_dir_all(&snapshots).unwrap();
    std::fs::rename(place.path("model"), snapshots.join("abc")).unwrap();
    let (_, err) = output(stats(&place.text("hf")), 0);
    assert!(err.contains("note: Org/Tiny is taken from"), "{err}");
}
