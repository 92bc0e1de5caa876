//! F1 and ROUGE-L of answers.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use crate::common::cli::answer_to as run;
use mixlora::text::{Message, Role};
use mixlora::train::Judged;
use serde_json::{Value, json};
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What the script of SQuAD 2.0 and rouge-score gave: tests/fixtures/make_overlap.py.
#[test]
fn overlap_is_that_of_squad_and_rouge_score() {
    let text = std::fs::read_to_string(Path::new(ROOT).join("tests/fixtures/overlap.json")).unwrap();
    let pairs: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(pairs.len() > 20);
    for pair in &pairs {
        let [answer, reference] = ["answer", "reference"].map(|key| pair[key].as_str().unwrap());
        let judged = Judged::of(answer, reference);
        for (found, key) in [(judged.f1, "f1"), (judged.rouge_l, "rouge_l")] {
            let wanted = pair[key].as_f64().unwrap();
            assert!(
                (found - wanted).abs() < 1e-12,
                "{key} of {answer:?} and {reference:?}: {found}, not {wanted}"
            );
        }
    }
}

/// Answers go on to their end or --max-tokens, whatever was wanted, and tasks count the same.
#[test]
fn eval_judges_whole_answers() {
    let model = format!("{ROOT}/data/tiny");
    let dir = tempfile::tempdir().unwrap();
    let ask = |question: &str| {
        let args = ["generate", "--model", &model, "--prompt", question, "--max-tokens", "24"];
        run(&args, "", 0).0.trim_end_matches('\n').to_string()
    };
    let asked = [
        ("one", "Name a colour.", "Red"),
        ("one", "What is the capital of France?", "the capital is Paris"),
        ("two", "Name an animal.", "a dog"),
    ];
    let mut lines = String::new();
    let mut wanted = [[0.0; 3]; 2];
    for (task, question, reference) in asked {
        let messages = [Message::new(Role::User, question), Message::new(Role::Assistant, reference)];
        lines += &(json!({ "task": task, "messages": messages }).to_string() + "\n");
        let judged = Judged::of(&ask(question), reference);
        let row = usize::from(task == "two");
        let n = if row == 0 { 2.0 } else { 1.0 };
        for (sum, figure) in
            wanted[row].iter_mut().zip([f64::from(u8::from(judged.exact)), judged.f1, judged.rouge_l])
        {
            *sum += figure / n;
        }
    }
    std::fs::write(dir.path().join("test.jsonl"), lines).unwrap();
    let data = dir.path().to_str().unwrap();
    // Twenty tokens and the slack of four beyond them.
    let args = ["eval", "--model", &model, "--data", data, "--max-tokens", "20"];
    let report: Value = serde_json::from_str(&run(&[&args[..], &["--json"]].concat(), "", 0).0).unwrap();
    for (i, key) in ["exact_match", "f1", "rouge_l"].iter().enumerate() {
        for (task, wanted) in ["one", "two"].iter().zip(wanted) {
            let found = report["tasks"][task][key].as_f64().unwrap();
            assert!((found - wanted[i]).abs() < 1e-12, "{key} of {task}: {found}, not {}", wanted[i]);
        }
        let mean = 0.5 * (wanted[0][i] + wanted[1][i]);
        assert!((report[key].as_f64().unwrap() - mean).abs() < 1e-12, "{report:#}");
    }
    let (text, _) = run(&args, "", 0);
    let shown = format!("F1 {:.1} %", 100.0 * report["f1"].as_f64().unwrap());
    assert!(text.contains(&shown) && text.contains("ROUGE-L"), "{text}");
}
