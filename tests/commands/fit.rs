//! `plan --fit` and `train --fit`, and the format of the weights.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use crate::common::cli::answer_to as run;
use crate::common::tiny;
use serde_json::Value;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny::write_text_model(&dir.path().join("model"));
        tiny::write_data(&dir.path().join("data"), 32);
        Place(dir)
    }
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_string()
    }
    fn train(&self, out: &str, more: &[&str], code: i32) -> (String, String) {
        let [model, data, out] = ["model", "data", out].map(|name| self.path(name));
        let args = ["train", "--model", &model, "--data", &data, "--out", &out, "--method", "lora"];
        run(&[&args[..], &["--steps", "3", "--device", "cpu"], more].concat(), "", code)
    }
    fn stored(&self, out: &str) -> Value {
        let file = std::fs::read(self.0.path().join(out).join("run.json")).unwrap();
        serde_json::from_slice::<Value>(&file).unwrap()["config"].clone()
    }
}

fn plan(more: &[&str], code: i32) -> Value {
    let args = ["plan", "--shape", "llama-1b", "--device", "cpu", "--method", "lora", "--json"];
    let (said, _) =
        run(&[&args[..], &["--max-length", "512", "--micro-batch", "12"], more].concat(), "", code);
    serde_json::from_str(&said).unwrap()
}

#[test]
fn the_gentlest_settings_that_fit_are_found() {
    let fit = |size: &str| plan(&["--fit", size], 0);
    let said = |size: &str| fit(size)["fit"].as_str().unwrap().to_string();
    assert_eq!(said("200GiB"), "");
    // First what changes no value, then what costs precision.
    let all: Vec<String> = ["40GiB", "20GiB", "8GiB", "4GiB", "2GiB"].map(said).to_vec();
    for (size, said) in ["40GiB", "20GiB", "8GiB", "4GiB", "2GiB"].iter().zip(&all) {
        let limit = size.trim_end_matches("GiB").parse::<f64>().unwrap() * (1u64 << 30) as f64;
        let total = fit(size)["total"].as_f64().unwrap();
        assert!(total <= limit, "{size}: {total}");
        println!("{size}: {said}");
    }
    let weights = |said: &String| said.contains("--weights");
    assert!(!weights(&all[0]) && !weights(&all[1]) && weights(&all[4]), "{all:?}");
    // A step's batch stays what it was.
    for said in &all {
        let words: Vec<&str> = said.split(' ').collect();
        let number = |option: &str| {
            words.iter().position(|word| *word == option).map(|at| words[at + 1].parse::<usize>().unwrap())
        };
        let parts = number("--grad-accumulation").unwrap_or(1);
        assert_eq!(number("--micro-batch").unwrap_or(12) * parts, 12, "{said}");
    }
    // What was found is what a plan with these options says.
    let options: Vec<&str> = all[4].split(' ').collect();
    let base = [
        "plan",
        "--shape",
        "llama-1b",
        "--device",
        "cpu",
        "--method",
        "lora",
        "--json",
        "--max-length",
        "512",
    ];
    let (again, _) = run(&[&base[..], &options, &["--memory-budget", "2GiB"]].concat(), "", 0);
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["total"], fit("2GiB")["total"]);
    let none = plan(&["--fit", "100MiB"], 5);
    assert_eq!((&none["fit"], &none["fits"]), (&Value::Null, &Value::Bool(false)));
}

#[test]
fn settings_that_fit_are_written_and_trained_with() {
    let place = Place::new();
    let [model, data, file] = ["model", "data", "fitted.toml"].map(|name| place.path(name));
    let of_run = ["--model", &model, "--data", &data, "--method", "lora", "--steps", "3", "--device", "cpu"];
    let planned = |more: &[&str]| -> Value {
        let (said, _) = run(&[&["plan"][..], &of_run, more, &["--json"]].concat(), "", 0);
        serde_json::from_str(&said).unwrap()
    };
    let whole = planned(&["--memory-budget", "1GiB"])["total"].as_u64().unwrap();
    let limit = format!("{}KiB", (whole * 3 / 4) >> 10);
    let fit = planned(&["--fit", &limit, "--settings", &file]);
    let options = fit["fit"].as_str().unwrap();
    assert!(!options.is_empty());
    let (_, told) = place.train("fitted", &["--fit", &limit], 0);
    assert!(told.contains(&format!("fits with {options}")), "{told}");
    // The file of settings says the same.
    run(&["train", "--config", &file, "--out", &place.path("of_file"), "--quiet"], "", 0);
    let [one, other] = ["fitted", "of_file"].map(|name| place.stored(name));
    assert_eq!(one, other);
    let batch = |config: &Value| {
        let number = |key: &str| config["train"][key].as_u64().unwrap();
        number("micro_batch") * number("grad_accumulation")
    };
    place.train("plain", &[], 0);
    assert_eq!(batch(&one), batch(&place.stored("plain")));
    let (_, told) = place.train("none", &["--fit", "10KiB"], 5);
    assert!(told.contains("does not fit"), "{told}");
}

#[test]
fn weights_are_held_as_they_are_asked_for_and_old_options_still_are() {
    let place = Place::new();
    for (more, stored, note) in [
        (&[][..], "f32", ""),
        (&["--weights", "q8_0"], "q8_0", ""),
        (
            &["--weights", "q4_k"],
            "q4_k",
            "15 matrices have rows that are no multiple of what q4_k needs, and q5_0 instead",
        ),
        (&["--keep-quantised"], "file", "--keep-quantised is now --weights file"),
    ] {
        let out = format!("run{}", more.join(""));
        let (_, told) = place.train(&out, more, 0);
        assert!(told.contains(note), "{told}");
        assert_eq!(place.stored(&out)["device"]["weights"], stored);
    }
    let (_, told) = place.train("other", &["--weights", "q3"], 2);
    assert!(told.contains("q3") && told.contains("q4_k"), "{told}");
    let model = place.path("model");
    let generate = ["generate", "--model", &model, "--prompt", "1?", "-n", "2"];
    let (_, told) = run(&[&generate[..], &["--dequantise"]].concat(), "", 0);
    assert!(told.contains("--dequantise is now --weights f32"), "{told}");
    let (_, told) = run(&[&generate[..], &["--dequantise", "--weights", "f16"]].concat(), "", 2);
    assert!(told.contains("cannot be used with"), "{told}");
}
