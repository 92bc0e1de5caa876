//! The data commands as a user meets them.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
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

/// A line of a set that was made.
struct Made {
    task: String,
    item: String,
    question: String,
    answer: String,
}

fn made(dir: &Path, part: &str) -> Vec<Made> {
    let text = std::fs::read_to_string(dir.join(part).with_extension("jsonl")).unwrap();
    let line = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_string();
        let message = |index: usize| text(&value["messages"][index]["content"]);
        assert_eq!(message(0), "Answer briefly.");
        Made {
            task: text(&value["task"]),
            item: text(&value["item"]),
            question: message(1),
            answer: message(2),
        }
    };
    text.lines().map(line).collect()
}

/// The number of samples of each task.
fn counts(samples: &[Made]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    samples.iter().for_each(|sample| *counts.entry(sample.task.as_str()).or_default() += 1);
    counts
}

fn items(samples: &[Made]) -> BTreeSet<(&str, &str)> {
    samples.iter().map(|sample| (sample.task.as_str(), sample.item.as_str())).collect()
}

/// The wordings that come before the list.
fn wordings(samples: &[Made]) -> BTreeSet<(&str, &str)> {
    let wording = |sample: &'_ Made| sample.question.strip_suffix(&sample.item).unwrap().len();
    samples.iter().map(|sample| (sample.task.as_str(), &sample.question[..wording(sample)])).collect()
}

#[test]
fn rules_contradict_each_other_and_share_no_list_between_parts() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("rules");
    let sizes = ["--tasks", "10", "--samples", "30", "--questions", "21", "--words", "5"];
    let make = |out: &Path, seed: &str| {
        let args = ["data", "make", "rules", "--out", out.to_str().unwrap(), "--seed", seed];
        run(&[&args[..], &sizes].concat(), 0).0
    };
    let text = make(&out, "7");
    let parts = ["train", "tuning", "final", "wording"].map(|part| made(&out, part));
    for ((part, samples), each) in
        ["train", "tuning", "final", "wording"].iter().zip(&parts).zip([30, 6, 21, 21])
    {
        assert!(
            counts(samples).len() == 10 && counts(samples).values().all(|&count| count == each),
            "{part}"
        );
        let row = text.lines().find(|line| line.starts_with(&format!("{part}.jsonl"))).unwrap();
        assert!(row.contains(&(10 * each).to_string()), "{text}");
        // Every list has another answer under every rule that it occurs under.
        let mut answers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for sample in samples {
            assert_eq!(sample.item.split(", ").count(), 5);
            answers.entry(&sample.item).or_default().push(&sample.answer);
        }
        assert!(answers.values().filter(|answers| answers.len() >= 3).count() > answers.len() / 2, "{part}");
        assert!(answers.values().all(|a| a.iter().collect::<BTreeSet<_>>().len() == a.len()), "{answers:?}");
        for sample in samples {
            let mut list: Vec<&str> = sample.item.split(", ").collect();
            match sample.task.as_str() {
                "reverse" => list.reverse(),
                "first_to_end" => list.rotate_left(1),
                "last_to_front" => list.rotate_right(1),
                "drop_last" => list.truncate(4),
                "last_first" => list = vec![list[4], list[0]],
                "drop_first_reverse" => list = vec![list[4], list[3], list[2], list[1]],
                _ => continue,
            }
            assert_eq!(sample.answer, list.join(", "), "{}", sample.question);
        }
    }
    let lists =
        parts.each_ref().map(|samples| samples.iter().map(|s| s.item.as_str()).collect::<BTreeSet<_>>());
    let all: BTreeSet<&str> = lists.iter().flatten().copied().collect();
    assert_eq!(all.len(), lists.iter().map(BTreeSet::len).sum::<usize>(), "a list is in two parts");
    // Four wordings of every rule are trained, and one is not.
    assert_eq!(wordings(&parts[0]).len(), 40);
    assert!(
        wordings(&parts[1]).union(&wordings(&parts[2])).all(|wording| wordings(&parts[0]).contains(wording))
    );
    assert_eq!(wordings(&parts[3]).len(), 10);
    assert!(wordings(&parts[3]).is_disjoint(&wordings(&parts[0])));

    let bytes = |out: &Path| std::fs::read(out.join("final.jsonl")).unwrap();
    make(&dir.path().join("again"), "7");
    make(&dir.path().join("other"), "8");
    assert_eq!(bytes(&dir.path().join("again")), bytes(&out));
    assert_ne!(bytes(&dir.path().join("other")), bytes(&out));
}

#[test]
fn the_quickstart_in_three_parts_shares_no_item() {
    let dir = tempfile::tempdir().unwrap();
    let [out, again, usual] = ["parts", "again", "usual"].map(|name| dir.path().join(name));
    run(&["data", "make", "quickstart", "--out", out.to_str().unwrap()], 0);
    run(&["data", "make", "quickstart", "--out", again.to_str().unwrap()], 0);
    let parts = ["train", "tuning", "final"].map(|part| made(&out, part));
    let [train, tuning, last] = &parts;
    assert!(last.len() >= 1500 && (380..=420).contains(&tuning.len()), "{} {}", last.len(), tuning.len());
    assert!(train.len() >= 1450, "{}", train.len());
    let sets = parts.each_ref().map(|samples| items(samples));
    for (set, samples) in sets.iter().zip(&parts) {
        assert_eq!(set.len(), samples.len(), "an item occurs twice in a part");
        assert_eq!(counts(samples).len(), 7);
    }
    assert!(sets[0].is_disjoint(&sets[1]) && sets[0].is_disjoint(&sets[2]) && sets[1].is_disjoint(&sets[2]));
    for part in ["train", "tuning", "final"].map(|part| format!("{part}.jsonl")) {
        assert_eq!(std::fs::read(out.join(&part)).unwrap(), std::fs::read(again.join(&part)).unwrap());
    }
    // Words and countries that the quickstart holds out are not trained here either.
    run(&["quickstart", "--set-only", "--out", usual.to_str().unwrap()], 0);
    let held_out = std::fs::read_to_string(usual.join("data/test.jsonl")).unwrap();
    for sample in train.iter().filter(|sample| ["category", "continent"].contains(&sample.task.as_str())) {
        assert!(!held_out.contains(&format!("\"{}\"", sample.question)), "{}", sample.question);
    }
}

#[test]
fn sets_that_cannot_be_made_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("new");
    let rules = ["data", "make", "rules", "--out", new.to_str().unwrap()];
    for wrong in [
        ["--tasks", "0"],
        ["--tasks", "1"],
        ["--tasks", "41"],
        ["--tasks", "-1"],
        ["--words", "2"],
        ["--words", "9"],
        ["--samples", "0"],
        ["--questions", "0"],
    ] {
        let (_, err) = run(&[&rules[..], &wrong].concat(), 2);
        assert!(err.contains(wrong[0]) && err.contains(wrong[1]), "{err}");
    }
    let (_, err) = run(&[&rules[..], &["--words", "3", "--tasks", "40", "--samples", "10000"]].concat(), 2);
    assert!(err.contains("not so many lists of 3 words"), "{err}");
    let quickstart = ["data", "make", "quickstart", "--out", new.to_str().unwrap()];
    let (_, err) = run(&[&quickstart[..], &["--questions", "10000"]].concat(), 2);
    assert!(err.contains("has not so many items"), "{err}");
    assert!(!new.exists(), "nothing is written");
    std::fs::write(dir.path().join("file"), "x").unwrap();
    let (_, err) = run(&["data", "make", "rules", "--out", dir.path().to_str().unwrap()], 3);
    assert!(err.contains("is not empty"), "{err}");
    run(&["data", "make", "rules"], 2);
}

/// A table of one's own questions: looked at, trained on with a share set apart, converted.
#[test]
fn a_table_is_trained_on_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    crate::common::tiny::write_text_model(&dir.path().join("model"));
    let rows: String = (0..40).map(|i| format!("{i},\"what, is {i}?\",\"it is {i}\"\n")).collect();
    std::fs::write(path("own.csv"), format!("id,question,answer\n{rows}")).unwrap();
    let columns = ["--columns", "question=prompt,answer=completion"];

    let (_, err) = run(&["data", "check", &path("own.csv")], 3);
    assert!(err.contains("own.csv:1: ") && err.contains("--columns question=prompt"), "{err}");
    let check = ["data", "check", &path("own.csv")];
    let (text, err) = run(&[&check[..], &columns].concat(), 0);
    assert!(text.contains("prompt and completion: 40") && text.contains("id (40)"), "{text}");
    assert!(err.contains("own.csv is read as a table with commas: 40 prompt and completion"), "{err}");

    let train = ["train", "--model", &path("model"), "--data", &path("own.csv"), "--out", &path("run")];
    let train = [&train[..], &columns, &["--valid-share", "0.2", "--steps", "2"]].concat();
    let (text, err) = run(&train, 0);
    assert!(text.contains("best validation loss"), "{text}");
    assert!(err.contains("own.csv is read as a table") && err.contains(" validate"), "{err}");
    let (text, _) = run(&["train", "--resume", &path("run"), "--steps", "3"], 0);
    assert!(text.contains("best validation loss"), "{text}");
    std::fs::create_dir(path("both")).unwrap();
    for name in ["both/train.csv", "both/valid.csv"] {
        std::fs::copy(path("own.csv"), path(name)).unwrap();
    }
    let both = ["train", "--model", &path("model"), "--data", &path("both"), "--out", &path("run2")];
    let (_, err) = run(&[&both[..], &columns, &["--valid-share", "0.2"]].concat(), 3);
    assert!(err.contains("valid_share") && err.contains("valid.csv"), "{err}");

    let convert = ["data", "convert", &path("own.csv"), "--out", &path("own.jsonl")];
    let (text, _) = run(&[&convert[..], &columns].concat(), 0);
    assert!(text.contains("40 samples in"), "{text}");
    let (_, err) = run(&[&convert[..], &columns].concat(), 3);
    assert!(err.contains("already"), "{err}");
    let (text, err) = run(&["data", "check", &path("own.jsonl")], 0);
    assert!(text.contains("messages: 40") && !err.contains("is read as"), "{text}{err}");
    let convert = ["data", "convert", &path("both"), "--out", &path("converted")];
    run(&[&convert[..], &columns].concat(), 0);
    let converted = std::fs::read_to_string(path("converted/valid.jsonl")).unwrap();
    assert_eq!(converted, std::fs::read_to_string(path("own.jsonl")).unwrap());
    std::fs::write(path("book.txt"), "Once upon a time.").unwrap();
    let (_, err) = run(&["data", "convert", &path("book.txt"), "--out", &path("book.jsonl")], 3);
    assert!(err.contains("plain text has no turns"), "{err}");
}
