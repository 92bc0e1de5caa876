//! The commands that use a model, as a user meets them: generate, chat, eval.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use crate::common::cli::answer_to as run;
use crate::common::tiny;
use mixlora::data::read_samples;
use mixlora::model::{Model, Step};
use mixlora::nn::Pass;
use mixlora::text::ModelText;
use mixlora::train::TextOptions;
use mixlora::{Device, Tensor, mixture::Units, no_grad};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

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
    /// An adapter that has learned the answers, so that they end.
    fn trained(&self) -> String {
        let model = self.path("model");
        let data = self.path("data");
        let out = self.path("run");
        let train = ["train", "--model", &model, "--data", &data, "--out", &out, "--method", "lora"];
        run(&[&train[..], &["--steps", "800", "--learning-rate", "3e-3"]].concat(), "", 0);
        out
    }
    fn generate(&self, more: &[&str], code: i32) -> (String, String) {
        let model = self.path("model");
        run(&[&["generate", "--model", &model][..], more].concat(), "", code)
    }
}

#[test]
fn stop_texts_end_an_answer_also_across_tokens() {
    let place = Place::new();
    let adapter = place.trained();
    let said = |more: &[&str]| {
        let args = ["--adapter", &adapter, "--prompt", "2xx?"];
        place.generate(&[&args[..], more].concat(), 0).0
    };
    // Training ended it with one of the end tokens, and each letter is a token.
    assert_eq!(said(&[]), "ababab\n");
    assert_eq!(said(&["--stop", "ba"]), "a\n");
    assert_eq!(said(&["--stop", "bb", "--stop", "abab"]), "\n");
    assert_eq!(said(&["--stop", "bx"]), "ababab\n", "what might have become a stop text is not lost");
    assert_eq!(said(&["--max-tokens", "3"]), "aba\n");
    assert_eq!(said(&["--temperature", "1", "--top-k", "1"]), "ababab\n");
    let drawn = |seed| said(&["--temperature", "3", "--seed", seed, "--max-tokens", "20"]);
    assert_eq!(drawn("5"), drawn("5"));
    assert_ne!(drawn("5"), drawn("6"));
}

/// What several adapters add is summed, each times its scale.
#[test]
fn adapters_are_summed_with_their_scales() {
    let place = Place::new();
    let adapter = place.trained();
    let said = |more: &[&str]| {
        place
            .generate(
                &[&["--prompt", "2xx?", "--max-tokens", "6", "--adapter", &adapter][..], more].concat(),
                0,
            )
            .0
    };
    let (plain, _) = place.generate(&["--prompt", "2xx?", "--max-tokens", "6"], 0);
    let tuned = said(&[]);
    assert_ne!(tuned, plain);
    assert_eq!(said(&["--adapter-scale", "1"]), tuned);
    assert_eq!(said(&["--adapter-scale", "0"]), plain);
    assert_eq!(said(&["--adapter", &adapter, "--adapter-scale", "0.5", "--adapter-scale", "0.5"]), tuned);
    assert_eq!(said(&["--adapter", &adapter, "--adapter-scale", "1", "--adapter-scale", "-1"]), plain);
    let refused = |more: &[&str]| place.generate(&[&["--prompt", "x"][..], more].concat(), 2).1;
    assert!(refused(&["--adapter-scale", "1"]).contains("--adapter"));
    let two = ["--adapter", &adapter, "--adapter-scale", "1", "--adapter-scale", "2"];
    assert!(refused(&two).contains("2 scales for 1 adapters"));
    assert!(refused(&["--adapter", &adapter, "--adapter-scale", "nan"]).contains("finite"));
}

#[test]
fn bad_values_are_refused_with_their_name() {
    let place = Place::new();
    for (option, value, name) in
        [("--temperature", "-1", "temperature"), ("--top-p", "0", "top-p"), ("--top-p", "1.5", "top-p")]
    {
        let option = format!("{option}={value}");
        let (_, err) = place.generate(&["--prompt", "x", &option], 2);
        assert!(err.contains(name), "{err}");
    }
    for wrong in
        [&["--top-k=-1"][..], &["--max-tokens", "many"], &["--decode-route", "sideways"], &["--seed=-1"]]
    {
        place.generate(&[&["--prompt", "x"][..], wrong].concat(), 2);
    }
    let (_, err) = place.generate(&["--prompt", &"x".repeat(600)], 3);
    assert!(err.contains("context is full") && err.contains("512 positions"), "{err}");
    let (_, err) = place.generate(&["--prompt", "x", "--adapter", &place.path("nothing")], 3);
    assert!(err.contains("nothing"), "{err}");
    // Without a template a conversation cannot be written; `generate` takes the plain text then.
    std::fs::write(place.path("model/tokenizer_config.json"), r#"{"eos_token": "<|im_end|>"}"#).unwrap();
    let plain = place.generate(&["--prompt", "x", "--max-tokens", "5"], 0).0;
    assert_eq!(plain, place.generate(&["--prompt", "x", "--raw", "--max-tokens", "5"], 0).0);
    place.generate(&["--prompt", "x", "--template", "chatml", "--max-tokens", "2"], 0);
    let (_, err) = run(&["chat", "--model", &place.path("model")], "hi\n", 3);
    assert!(err.contains("--template chatml"), "{err}");
}

#[test]
fn an_answer_ends_with_the_context() {
    let place = Place::new();
    // Each letter is a position: 32 are left of 512, and one more token is drawn than read.
    let (_, err) = place.generate(&["--raw", "--prompt", &"x".repeat(480), "--max-tokens", "400"], 0);
    assert!(err.contains("prompt 480 tokens") && err.contains("generated 33 in"), "{err}");
}

#[test]
fn a_chat_goes_on_from_what_was_said() {
    let place = Place::new();
    let model = place.path("model");
    let adapter = place.trained();
    let chat = |input: &str, more: &[&str]| {
        run(&[&["chat", "--model", &model, "--adapter", &adapter][..], more].concat(), input, 0)
    };
    let (out, err) = chat("2xx?\n/help\n/nothing\n\n/reset\n2xx?\n/exit\nnot read\n", &[]);
    assert_eq!(out, "ababab\nababab\n", "a reset conversation is a new one");
    assert!(err.contains("/system TEXT") && err.contains("no command /nothing"), "{err}");
    // The second turn over the cache is what the whole conversation gives in one prompt.
    let (out, _) = chat("2xx?\n1x?\n", &[]);
    let second = out.lines().nth(1).unwrap();
    let whole = "<|im_start|>user\n2xx?<|im_end|>\n<|im_start|>assistant\nababab<|im_end|>\n\
                 <|im_start|>user\n1x?<|im_end|>\n<|im_start|>assistant\n";
    let (once, _) = place.generate(&["--adapter", &adapter, "--raw", "--prompt", whole], 0);
    assert_eq!(once.trim_end(), second);
    // A stop text cuts what the model has read: it is read again, once said so.
    let (out, err) = chat("2xx?\n2xx?\n2xx?\n", &["--stop", "ba"]);
    assert_eq!((out.lines().count(), err.matches("is read again").count()), (3, 1), "{out}{err}");
    let (out, err) = chat(&format!("{}\n2xx?\n", "x".repeat(600)), &[]);
    assert!(err.contains("context is full") && err.contains("/reset"), "{err}");
    assert_eq!(out, "ababab\n", "what did not fit is forgotten");
}

/// Sum of `-ln p` over the trained tokens and their number, sample by sample from the logits, in f64.
fn loss_by_hand(model: &Path, data: &Path, task: &str) -> (f64, usize) {
    let cpu = Device::cpu();
    let text = ModelText::open(model).unwrap();
    let model = Model::open(model, &cpu).unwrap();
    let samples = read_samples(data).unwrap();
    let data = TextOptions::default().encoder(&text).unwrap().dataset(data, &samples).unwrap();
    let mut sum = 0.0;
    let mut tokens = 0;
    for (e, _) in data.examples.iter().zip(&data.tasks).filter(|(_, t)| t.as_deref() == Some(task)) {
        let ids = Tensor::from_u32(&cpu, &[1, e.ids.len()], &e.ids).unwrap();
        let pass = Pass::new(Units::instances(&cpu, 1, e.ids.len()).unwrap());
        let hidden = no_grad(|| model.forward(&ids, &pass, Step::default())).unwrap();
        let logits = no_grad(|| model.logits(&hidden)).unwrap().to_f64().unwrap();
        let v = model.config().vocab_size;
        for at in (1..e.ids.len()).filter(|&at| e.trained[at]) {
            let row = &logits[(at - 1) * v..at * v];
            sum += row.iter().map(|z| z.exp()).sum::<f64>().ln() - row[e.ids[at] as usize];
            tokens += 1;
        }
    }
    (sum, tokens)
}

#[test]
fn eval_gives_the_numbers_of_a_hand_computation() {
    let place = Place::new();
    let model = place.path("model");
    let data = place.path("data");
    let adapter = place.trained();
    let base: Value =
        serde_json::from_str(&run(&["eval", "--model", &model, "--data", &data, "--json"], "", 0).0).unwrap();
    let valid = Path::new(&data).join("valid.jsonl");
    let mut sum = 0.0;
    let mut tokens = 0;
    for task in ["one", "two"] {
        let (s, n) = loss_by_hand(Path::new(&model), &valid, task);
        let loss = base["tasks"][task]["loss"].as_f64().unwrap();
        assert!((loss - s / n as f64).abs() < 1e-5, "{task}: {loss}, by hand {}", s / n as f64);
        assert_eq!(base["tasks"][task]["tokens"], n);
        (sum, tokens) = (sum + s, tokens + n);
    }
    let whole = sum / tokens as f64;
    assert!((base["loss"].as_f64().unwrap() - whole).abs() < 1e-5);
    assert!((base["perplexity"].as_f64().unwrap() / whole.exp() - 1.0).abs() < 1e-4);
    assert_eq!(
        (&base["tokens"], &base["exact_match"]),
        (&tokens.into(), &0.0.into()),
        "it knows nothing yet"
    );

    // Answers in batches are those that each question gets alone.
    let (text, _) =
        run(&["eval", "--model", &model, "--adapter", &adapter, "--data", &data, "--show", "9"], "", 0);
    let tuned = ["eval", "--model", &model, "--adapter", &adapter, "--data", &data, "--json"];
    let tuned: Value = serde_json::from_str(&run(&tuned, "", 0).0).unwrap();
    let mut right = [0, 0];
    for line in std::fs::read_to_string(&valid).unwrap().lines() {
        let sample: Value = serde_json::from_str(line).unwrap();
        let said = |i: usize| sample["messages"][i]["content"].as_str().unwrap().to_string();
        let (answer, _) = place.generate(&["--adapter", &adapter, "--prompt", &said(0)], 0);
        let task = usize::from(sample["task"] == "two");
        right[task] += usize::from(answer.trim() == said(1));
        let shown = text.contains(&format!("{:?} -> {:?}, wanted {:?}", said(0), answer.trim(), said(1)));
        assert_eq!(shown, answer.trim() != said(1), "{text}");
    }
    assert!(right[0] + right[1] > 0, "{text}");
    for (task, right) in ["one", "two"].iter().zip(right) {
        assert_eq!(
            (&tuned["tasks"][task]["right"], &tuned["tasks"][task]["questions"]),
            (&right.into(), &3.into())
        );
    }
    let mean = (right[0] + right[1]) as f64 / 6.0;
    assert!((tuned["exact_match"].as_f64().unwrap() - mean).abs() < 1e-12);
    assert!(tuned["loss"].as_f64().unwrap() < base["loss"].as_f64().unwrap());
    let (_, err) = run(&["eval", "--model", &model, "--data", &data, "--split", "test"], "", 3);
    assert!(err.contains("test.jsonl"), "{err}");
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let place = Place::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_mixlora"))
        .env("MIXLORA_DEVICE", "cpu")
        .args(["generate", "--model", &place.path("model"), "--raw", "--prompt", "x"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(0));
    assert!(!String::from_utf8_lossy(&done.stderr).contains("error"));
}
