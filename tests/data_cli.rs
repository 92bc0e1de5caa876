//! The data commands as a user meets them.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

fn run(args: &[&str], code: i32) -> (String, String) {
    let out =
        Command::new(env!("CARGO_BIN_EXE_mixlora")).env("MIXLORA_DEVICE", "cpu").args(args).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let err = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(code), "{args:?}\n{text}\n{err}");
    assert!(!err.contains("panicked"), "{err}");
    (text, err)
}

/// A model folder with a word-level tokenizer.
fn model(dir: &Path) {
    let words = ["<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant", "hi", "there"];
    let vocab: serde_json::Map<_, _> =
        words.iter().enumerate().map(|(i, w)| (w.to_string(), json!(i))).collect();
    let added = [1, 2].map(|i| {
        json!({"id": i, "content": words[i], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer_config.json"), r#"{"eos_token": "<|im_end|>"}"#).unwrap();
}

const SAMPLE: &str = r#"{"task": "x", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "there"}]}"#;

#[test]
fn data_is_checked_shown_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let data = dir.path().to_str().unwrap();
    std::fs::write(dir.path().join("train.jsonl"), format!("{SAMPLE}\n{SAMPLE}\n{{\"text\": \"hi\"}}\n"))
        .unwrap();
    let (text, _) = run(&["data", "check", data], 0);
    assert!(text.contains("messages: 2, text: 1") && text.contains("x: 2"), "{text}");
    let (text, _) = run(&["data", "check", data, "--json"], 0);
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()[0]["samples"], 3);

    let show = ["data", "show", data, "--model", data, "--template", "chatml", "-n", "1"];
    let (text, _) = run(&show, 0);
    assert!(text.contains("train.jsonl:1, task x: 8 tokens, 2 trained") && text.contains("[["), "{text}");
    let (text, _) = run(&[&show[..], &["--json"]].concat(), 0);
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list[0]["ids"], json!([1, 3, 5, 2, 1, 4, 6, 2]));
    assert_eq!(list[0]["trained"], json!([false, false, false, false, false, false, true, true]));
    let tokenizer = dir.path().join("tokenizer.json");
    run(&["data", "show", data, "--tokenizer", tokenizer.to_str().unwrap(), "--template", "chatml"], 0);

    let stats = ["data", "stats", data, "--model", data, "--template", "chatml", "--max-length", "5"];
    let (text, _) = run(&stats, 0);
    assert!(text.contains("(all)") && text.contains("train.jsonl 2 cut to 5 tokens"), "{text}");
    let (text, _) = run(&[&stats[..], &["--json"]].concat(), 0);
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        list[0]["tasks"]["x"],
        json!({"examples": 2, "tokens": 10, "trained": 4, "p50": 5, "p90": 5, "max": 5})
    );
}

#[test]
fn bad_data_is_exit_code_3() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let data = dir.path().to_str().unwrap();
    run(&["data", "check", data], 3);
    std::fs::write(dir.path().join("train.jsonl"), format!("{SAMPLE}\n{{\"text\": 1}}\n")).unwrap();
    std::fs::write(dir.path().join("valid.jsonl"), "").unwrap();
    let (text, err) = run(&["data", "check", data], 3);
    assert!(
        text.is_empty() && err.contains("train.jsonl:2:") && err.contains("valid.jsonl: the file is empty"),
        "{err}"
    );
    let (text, err) = run(&["data", "check", data, "--json"], 3);
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list[0]["problems"][0]["line"], 2, "{text}");
    assert_eq!(list[1]["problems"][0]["what"], "the file is empty", "{text}");
    assert!(err.contains("train.jsonl:2:"), "{err}");
    std::fs::write(dir.path().join("train.jsonl"), SAMPLE).unwrap();
    // No template, an unknown one, no tokenizer.
    let (_, err) = run(&["data", "show", data, "--model", data], 3);
    assert!(err.contains("train.jsonl:1: the model has no chat template"), "{err}");
    let (_, err) = run(&["data", "show", data, "--model", data, "--template", "nonsense"], 3);
    assert!(err.contains("built-in template chatml"), "{err}");
    run(&["data", "stats", data, "--model", "nonexistent"], 3);
    run(&["data", "show", data], 2);
    for command in ["check", "show", "stats"] {
        let (text, _) = run(&["data", command, "--help"], 0);
        assert!(text.contains("Example: mixlora data"), "{text}");
    }
}
