//! `eval --compare`: several adapters on the same questions.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use crate::common::cli::answer_to as run;
use crate::common::tiny;
use serde_json::{Value, json};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny::write_text_model(&dir.path().join("model"));
        tiny::write_data(&dir.path().join("data"), 64);
        Place(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_string()
    }

    /// A run of so many steps.
    fn trained(&self, name: &str, steps: &str) -> String {
        let [model, data, out] = ["model", "data", name].map(|name| self.path(name));
        let train = ["train", "--model", &model, "--data", &data, "--out", &out, "--method", "lora"];
        run(&[&train[..], &["--steps", steps, "--learning-rate", "3e-3"]].concat(), "", 0);
        out
    }

    fn eval(&self, data: &str, more: &[&str], code: i32) -> (String, String) {
        let model = self.path("model");
        run(&[&["eval", "--model", &model, "--data", data][..], more].concat(), "", code)
    }

    fn json(&self, data: &str, more: &[&str]) -> Value {
        serde_json::from_str(&self.eval(data, &[more, &["--json"]].concat(), 0).0).unwrap()
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn compared_adapters_have_their_own_scores_and_paired_differences() {
    let place = Place::new();
    let data = place.path("data");
    let far = place.trained("far", "400");
    let near = place.trained("near", "20");
    let compared = ["--compare", "base", "--compare", &far, "--compare", &near];
    let report = place.json(&data, &compared);
    let alone = [
        place.json(&data, &[]),
        place.json(&data, &["--adapter", &far]),
        place.json(&data, &["--adapter", &near]),
    ];
    for (i, name) in ["base", &far, &near].iter().enumerate() {
        let mut own = report["compared"][i].clone();
        assert_eq!(own["adapter"], *name);
        own.as_object_mut().unwrap().remove("adapter");
        assert_eq!(own, alone[i], "{name}");
    }
    for (i, name) in [(1, &far), (2, &near)] {
        let difference = &report["differences"][i - 1];
        assert_eq!((&difference["adapter"], &difference["less"]), (&json!(name), &json!("base")));
        for key in ["loss", "exact_match", "f1", "rouge_l"] {
            let apart = number(&alone[i][key]) - number(&alone[0][key]);
            let [mean, low, high] = ["mean", "low", "high"].map(|part| number(&difference[key][part]));
            assert!((mean - apart).abs() < 1e-9, "{key}: {mean}, not {apart}");
            assert!(low <= mean + 1e-12 && mean <= high + 1e-12, "{key}: {difference}");
        }
    }
    // Training shows on every question, so no resample of them hides it.
    let loss = &report["differences"][0]["loss"];
    assert!(number(&loss["high"]) < 0.0 && number(&loss["low"]) < number(&loss["high"]), "{loss}");

    let (text, err) = place.eval(&data, &compared, 0);
    assert!(err.contains(&format!("measuring {far}")), "{err}");
    assert!(text.contains("difference to base, with the interval"), "{text}");
    let cell = format!(
        "{:+.4} [{:+.4}, {:+.4}]",
        number(&loss["mean"]),
        number(&loss["low"]),
        number(&loss["high"])
    );
    assert!(text.contains(&cell), "{cell} is not in\n{text}");
    assert_eq!(place.eval(&data, &compared, 0).0, text, "the same numbers each time");
}

#[test]
fn equal_adapters_do_not_differ_and_choices_are_compared_too() {
    let place = Place::new();
    let near = place.trained("near", "20");
    let lines = |i: usize| {
        let answer = "ab".repeat(1 + i % 3);
        json!({ "prompt": format!("{i}?"), "choices": ["xyz", answer, "no"], "answer": i % 3 }).to_string()
            + "\n"
    };
    let choices = place.path("choices.jsonl");
    std::fs::write(&choices, (0..30).map(lines).collect::<String>()).unwrap();
    let again = format!("{near}/last");
    let report = place.json(&choices, &["--compare", &near, "--compare", &again, "--compare", "base"]);
    let zero = json!({ "mean": 0.0, "low": 0.0, "high": 0.0 });
    assert_eq!((&report["differences"][0]["acc"], &report["differences"][0]["acc_norm"]), (&zero, &zero));
    let own = |i: usize, key: &str| number(&report["compared"][i][key]);
    for key in ["acc", "acc_norm"] {
        let difference = &report["differences"][1][key];
        let apart = own(2, key) - own(0, key);
        assert!((number(&difference["mean"]) - apart).abs() < 1e-12, "{difference}");
        // Right answers of each question and model, which the report has the figures for.
        let right = |i: usize| -> Vec<f64> {
            let answers = report["compared"][i]["answers"].as_array().unwrap();
            let right = |answer: &Value| {
                let length = |choice: usize| match (key, choice) {
                    ("acc", _) => 1.0,
                    (_, 0) => 3.0,
                    (_, 1) => 2.0 * (1.0 + ((number(&answer["line"]) as usize - 1) % 3) as f64),
                    _ => 2.0,
                };
                let score = |choice: usize| number(&answer["log_probabilities"][choice]) / length(choice);
                let best =
                    (1..3).fold(0, |best, choice| if score(choice) > score(best) { choice } else { best });
                f64::from(u8::from(answer["answer"] == best))
            };
            answers.iter().map(right).collect()
        };
        let pairs: Vec<f64> = right(2).iter().zip(right(0)).map(|(a, b)| a - b).collect();
        let mean = pairs.iter().sum::<f64>() / 30.0;
        assert!((mean - apart).abs() < 1e-12, "{mean} {apart}");
        // The normal interval around it; a bootstrap of 30 differences is near.
        let variance = pairs.iter().map(|d| (d - mean) * (d - mean)).sum::<f64>() / 30.0;
        let half = 1.96 * (variance / 30.0).sqrt();
        let [low, high] = ["low", "high"].map(|part| number(&difference[part]));
        assert!(
            (low - (mean - half)).abs() < 0.04 && (high - (mean + half)).abs() < 0.04,
            "{difference} {half}"
        );
    }
}

#[test]
fn what_cannot_be_compared_says_why() {
    let place = Place::new();
    let data = place.path("data");
    for (more, says) in [
        (&["--compare", "base"][..], "--compare: base is the only one"),
        (&["--compare", "base", "--compare", "base"], "--compare: base is given twice"),
        (&["--compare", "base", "--compare", "x", "--adapter", "y"], "cannot be used with"),
        (&["--compare", "base", "--compare", "x", "--forgotten"], "cannot be used with"),
        (&["--compare", "base", "--compare", "x", "--show", "1"], "cannot be used with"),
    ] {
        let (_, err) = place.eval(&data, more, 2);
        assert!(err.contains(says), "{more:?}: {err}");
    }
    let (_, err) = place.eval(&data, &["--compare", "base", "--compare", "nowhere"], 3);
    assert!(err.contains("nowhere"), "{err}");
}
