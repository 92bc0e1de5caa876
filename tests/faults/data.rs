//! Samples and what they say about training.

use crate::common::cli::{mixlora, output};
use crate::common::tiny::write_data;
use crate::place::Place;
use serde_json::{Value, json};
use std::path::Path;

/// A place with a data set in `data`, which is empty yet.
fn empty_place() -> Place {
    let place = Place::new();
    std::fs::create_dir(place.path("data")).unwrap();
    place
}

impl Place {
    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path("data").join(name), bytes).unwrap();
    }
    /// `data check`, with what it says on stdout and stderr.
    fn check(&self, code: i32) -> (String, String) {
        output(mixlora(&["data", "check", &self.text("data")]), code)
    }
    /// What is said of a file that cannot be used, without the folder.
    fn refused(&self, bytes: impl AsRef<[u8]>) -> String {
        self.write("train.jsonl", bytes);
        let (_, err) = self.check(3);
        err.split_once("train.jsonl:").expect("the file is named").1.trim().to_string()
    }
    /// The text of each sample with its trained parts in brackets, one after the other.
    fn shown(&self, lines: &[Value], more: &[&str]) -> String {
        self.write("train.jsonl", lines.iter().map(|l| format!("{l}\n")).collect::<String>());
        let data = self.text("data");
        let model = self.text("model");
        let args = [&["data", "show", &data, "--model", &model, "-n", "99"], more].concat();
        output(mixlora(&args), 0).0
    }
    fn one_step(&self, more: &[&str]) -> (String, String) {
        let data = self.text("data");
        let model = self.text("model");
        let run = self.text("run");
        let fixed = ["train", "--model", &model, "--data", &data, "--out", &run, "--steps", "1"];
        output(mixlora(&[&fixed[..], &["--set", "r=2", "--threads", "1"], more].concat()), 0)
    }
}

fn turn(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

fn with(mut object: Value, key: &str, value: Value) -> Value {
    object[key] = value;
    object
}

fn talk() -> Value {
    json!({ "messages": [turn("user", "q"), turn("assistant", "a")] })
}

#[test]
fn null_columns() {
    let place = empty_place();
    let empty = with(turn("user", "q"), "tool_calls", Value::Null);
    let lines = [
        json!({ "messages": [empty, turn("assistant", "a")], "prompt": null, "completion": null, "text": null,
                "images": null, "weight": null, "task": null }),
        json!({ "messages": null, "prompt": "p", "completion": "c", "text": null }),
        json!({ "messages": null, "prompt": null, "completion": null, "text": "t", "tools": [] }),
    ];
    place.write("train.jsonl", lines.map(|l| format!("{l}\n")).concat());
    let (out, _) = place.check(0);
    assert!(out.contains("messages: 1, prompt and completion: 1, text: 1"), "{out}");
    assert!(!out.contains("warning"), "{out}");
    let e = place.refused(r#"{"messages": null, "text": null}"#);
    assert!(e.starts_with("1:1: field 'messages' is missing"), "{e}");
    let e = place.refused(r#"{"messages": [{"role": "user", "content": null}]}"#);
    assert!(e.contains("field 'content' is missing"), "{e}");
    let e = place.refused(r#"{"prompt": "p", "completion": null}"#);
    assert!(e.contains("field 'completion' is missing beside 'prompt'"), "{e}");
}

#[test]
fn weight_ignored() {
    let place = empty_place();
    let chat = |key: &str, no: Value, yes: Value| {
        let first = with(turn("assistant", "bad"), key, no);
        let second = with(turn("assistant", "good"), key, yes);
        json!({ "messages": [turn("user", "q"), first, turn("user", "r"), second] })
    };
    for key in ["weight", "train", "trainable", "training", "loss"] {
        for (no, yes) in [(json!(0), json!(1)), (json!(0.0), json!(1.0)), (json!(false), Value::Null)] {
            let text = place.shown(&[chat(key, no, yes)], &[]);
            assert!(text.contains("[[good<|im_end|>]]") && text.contains("\nbad<|im_end|>"), "{key}: {text}");
        }
    }
    // With everything trained, the turn alone is left out.
    let text = place.shown(&[chat("weight", json!(0), json!(1))], &["--loss-on-all"]);
    assert!(text.contains("]]bad<|im_end|>[[") && text.contains("good<|im_end|>\n]]"), "{text}");
    // Other weights, other turns and other keys are named.
    for (role, key, value, wanted) in [
        ("assistant", "weight", json!(0.5), "field 'weight': is 0.5, only 0 and 1 are supported"),
        ("assistant", "train", json!("no"), "field 'train': is \"no\""),
        ("user", "weight", json!(1), "messages[0] of role 'user' is to be trained"),
        ("assistant", "tool_calls", json!([{ "id": "x" }]), "field 'tool_calls' is not supported"),
        ("assistant", "function_call", json!({ "name": "f" }), "field 'function_call' is not supported"),
        ("assistant", "reasoning_content", json!("hm"), "field 'reasoning_content' is not supported"),
        ("assistant", "thinking", json!("hm"), "field 'thinking' is not supported"),
        ("assistant", "loss_mask", json!([0, 1]), "field 'loss_mask' is not supported"),
    ] {
        let place_of = usize::from(role == "assistant");
        let mut sample = talk();
        sample["messages"][place_of][key] = value;
        let e = place.refused(sample.to_string());
        assert!(e.starts_with("1:") && e.contains(wanted), "{key}: {e}");
    }
    for (key, value) in [("weight", json!(0)), ("weight", json!(2)), ("tools", json!([{ "name": "f" }]))] {
        let e = place.refused(with(talk(), key, value).to_string());
        assert!(e.contains(&format!(": field '{key}' is")), "{e}");
    }
    for role in ["tool", "function"] {
        let sample = json!({ "messages": [turn("user", "q"), turn(role, "x")] });
        let e = place.refused(sample.to_string());
        assert!(
            e.contains(&format!("'{role}' is not one of system, user, assistant: calls of tools")),
            "{e}"
        );
    }
    // What says nothing is passed over; what is only not known is counted.
    let sample = with(with(with(talk(), "weight", json!(1)), "tools", json!([])), "id", json!(7));
    place.write("train.jsonl", sample.to_string());
    let (out, _) = place.check(0);
    assert!(out.contains("keys that are not read, with their samples: id (1)\n"), "{out}");
}

#[test]
fn images_are_ignored() {
    let place = empty_place();
    for (key, value) in [("image_url", json!({ "url": "x" })), ("videos", json!(["v"]))] {
        for sample in [talk(), json!({ "prompt": "p", "completion": "c" }), json!({ "text": "t" })] {
            let e = place.refused(with(sample, key, value.clone()).to_string());
            assert!(e.starts_with("1:") && e.contains(&format!("field '{key}' is not supported")), "{e}");
        }
    }
    // A picture without a place, and a place without a picture.
    for key in ["images", "image"] {
        for sample in [talk(), json!({ "prompt": "p", "completion": "c" }), json!({ "text": "t" })] {
            let e = place.refused(with(sample, key, json!(["a.png"])).to_string());
            assert!(e.starts_with("1:") && e.contains("has 0 places for 1 picture in 'images'"), "{e}");
        }
    }
    let marked = json!({ "messages": [turn("user", "<image>\nwhat?"), turn("assistant", "a cat")] });
    let e = place.refused(marked.to_string());
    assert!(e.contains("has 1 place for 0 pictures in 'images'"), "{e}");
    let e = place.refused(json!({ "prompt": "what? <image>", "completion": "a cat" }).to_string());
    assert!(e.contains("has 1 place for 0 pictures in 'images'"), "{e}");
    place.write("train.jsonl", with(talk(), "images", json!([])).to_string());
    place.check(0);
}

#[test]
fn utf16_data() {
    let place = empty_place();
    let text = format!("{}\n{}\n", talk(), talk());
    let utf16 = |mark: &str, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
        format!("{mark}{text}").encode_utf16().flat_map(bytes).collect()
    };
    let utf32: Vec<u8> = format!("\u{feff}{text}").chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
    let lists: Vec<u8> = format!("[{text}]").encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (bytes, kind) in [
        (utf16("\u{feff}", u16::to_le_bytes), "text in UTF-16"),
        (utf16("\u{feff}", u16::to_be_bytes), "text in UTF-16"),
        (utf16("", u16::to_le_bytes), "text in UTF-16"),
        (utf16("", u16::to_be_bytes), "text in UTF-16"),
        (lists, "text in UTF-16"),
        (utf32, "text in UTF-32"),
        (b"PK\x03\x04\x14\0".to_vec(), "a zip archive"),
        (b"\x28\xb5\x2f\xfd\0".to_vec(), "a zstd file"),
        (b"PAR1\x15\x04".to_vec(), "a Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(), "a pointer of Git LFS"),
        (b"<!DOCTYPE html>\n<html>".to_vec(), "a web page"),
    ] {
        let e = place.refused(bytes);
        assert!(e.starts_with(&format!("is {kind}, not data in UTF-8; ")) && e.lines().count() == 1, "{e}");
    }
    let e = place.refused("prompt,completion\na,b\n");
    let cure = "tables and plain text are known by their endings, .csv, .tsv and .txt";
    assert_eq!(
        e,
        format!("is not JSONL, which has one object a line: it begins with \"prompt,completion\"; {cure}")
    );
}

#[test]
fn lone_surrogate() {
    let place = empty_place();
    for (line, escape, column) in [
        (r#"{"text": "a \ud83d"}"#, r"\ud83d", 13),
        (r#"{"text": "a \uDE00 b"}"#, r"\uDE00", 13),
        (r#"{"text": "\ud83d\ud83d\ude00"}"#, r"\ud83d", 11),
        (r#"{"prompt": "\\\ud83dx", "completion": "c"}"#, r"\ud83d", 15),
        (r#"{"\ud83d": 1, "text": "t"}"#, r"\ud83d", 3),
    ] {
        let e = place.refused(line);
        assert_eq!(
            e,
            format!("1:{column}: {escape} is half of a character (a lone surrogate), which no text can hold")
        );
    }
    // What else Python writes.
    for (line, wanted) in [
        (r#"{"text": NaN}"#, "NaN is not a JSON value"),
        (r#"{"text": "t", "score": -Infinity}"#, "-Infinity is not a JSON value"),
        (r#"{'text': 'a'}"#, "is written as Python prints it"),
        (r#"{"text": "t", "ok": True}"#, "is written as Python prints it"),
        (r#"{"text": "t", "ok": None}"#, "is written as Python prints it"),
    ] {
        let e = place.refused(line);
        assert!(e.contains(wanted), "{line}: {e}");
    }
    let text = place.shown(&[json!({ "text": "\u{1f600} \\ud83d" })], &[]);
    assert!(text.contains("\u{1f600} \\ud83d"), "{text}");
}

#[test]
fn validation_jsonl() {
    for name in ["validation.jsonl", "val.jsonl", "dev.jsonl", "eval.jsonl"] {
        let place = empty_place();
        write_data(&place.path("data"), 8);
        std::fs::rename(place.path("data/valid.jsonl"), place.path("data").join(name)).unwrap();
        let (out, _) = place.check(0);
        assert!(out.contains(name), "{out}");
        let (out, _) = place.one_step(&[]);
        assert!(out.contains("best validation loss"), "{name}: {out}");
    }
    let place = empty_place();
    write_data(&place.path("data"), 8);
    std::fs::rename(place.path("data/train.jsonl"), place.path("data/training.jsonl")).unwrap();
    for name in ["dev.jsonl", "train.json", "train.parquet", "valid.jsonl.gz", "Test.jsonl", "notes.txt"] {
        place.write(name, "x");
    }
    let named = "not read: Test.jsonl, dev.jsonl, train.json, train.parquet, valid.jsonl.gz; read are";
    assert!(place.check(0).1.contains(named));
    let (out, err) = place.one_step(&[]);
    assert!(out.contains("best validation loss") && err.contains(named), "{out}{err}");
    assert!(
        place.metrics("run").iter().any(|l| l["t"] == "note" && l["text"].as_str().unwrap().contains(named))
    );
    let only = empty_place();
    only.write("train.parquet", "a,b");
    let (_, err) = only.check(3);
    assert!(err.contains("holds no train.jsonl") && err.contains("not read: train.parquet"), "{err}");
}

#[test]
fn train_hides_what_it_leaves_out() {
    let place = empty_place();
    let long = json!({ "messages": [turn("user", &"x".repeat(300)), turn("assistant", "a")] });
    let silent = json!({ "messages": [turn("user", "nobody answers")] });
    let wordy = json!({ "messages": [turn("user", "q"), turn("assistant", &"b".repeat(40))] });
    let mut lines = vec![talk(); 40];
    lines.extend([long.clone(), long.clone(), silent]);
    let text = |lines: &[Value]| lines.iter().map(|l| format!("{l}\n")).collect::<String>();
    place.write("train.jsonl", text(&lines));
    place.write("valid.jsonl", text(&[talk(), long, wordy]));
    let (_, err) = place.one_step(&["--max-length", "64"]);
    let notes = [
        "of 43 training samples 1 left out (no trained token), 2 cut to 64 tokens",
        "of 3 validation samples 1 cut to 64 tokens",
        "exact match asks 2 of 3 samples with an answer: 1 have answers of more than 32 tokens",
    ];
    let metrics = place.metrics("run");
    for note in notes {
        assert_eq!(err.matches(&format!("note: {note}")).count(), 1, "{err}");
        assert!(metrics.iter().any(|l| l["t"] == "note" && l["text"] == note), "{metrics:?}");
    }
    let counts = &metrics[0]["samples"];
    assert_eq!((&counts["train"]["untrained"], &counts["train"]["truncated"]), (&json!(1), &json!(2)));
    assert_eq!(counts["valid"]["truncated"], 1);
    let data = place.text("data");
    let model = place.text("model");
    let (_, err) = output(mixlora(&["eval", "--model", &model, "--data", &data, "--max-length", "64"]), 0);
    assert!(err.contains("note: of 3 samples 1 cut to 64 tokens") && err.contains(notes[2]), "{err}");
}

/// Tokens of the sample, and of the prompt as `generate` reads it.
fn tokens(place: &Place, model: &str, prompt: &str, completion: &str) -> (Vec<Value>, Vec<bool>) {
    place.write("train.jsonl", json!({ "prompt": prompt, "completion": completion }).to_string());
    let data = place.text("data");
    let (out, _) = output(mixlora(&["data", "show", &data, "--model", model, "--json"]), 0);
    let shown: Value = serde_json::from_str(&out).unwrap();
    let trained = shown[0]["trained"].as_array().unwrap().iter().map(|t| t.as_bool().unwrap()).collect();
    (shown[0]["ids"].as_array().unwrap().clone(), trained)
}

// A prompt is trained in the tokens in which it is asked later, also where it ends in the middle of a token.
#[test]
fn a_prompt_that_ends_inside_a_token() {
    let place = empty_place();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny");
    let model = tiny.to_string_lossy();
    let text = mixlora::text::ModelText::open(&tiny).unwrap();
    for (prompt, completion) in [("3 is ", "three"), ("It is a colou", "rful day"), ("3 is", " three")] {
        let (ids, trained) = tokens(&place, &model, prompt, completion);
        let asked = text.tokenizer.encode_start(prompt).unwrap();
        let n = asked.len();
        assert_eq!(ids[..n], asked.iter().map(|id| json!(id)).collect::<Vec<_>>()[..], "{prompt:?}");
        assert_eq!(trained.iter().position(|t| *t), Some(n), "{prompt:?}");
        let answer: Vec<u32> = ids[n..ids.len() - 1].iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(text.tokenizer.decode(&answer, false), completion);
    }
    let sample = json!({ "prompt": "3 is ", "completion": "three" });
    place.write("train.jsonl", format!("{}\n{sample}\n{sample}\n", json!({ "text": "t" })));
    let (out, _) = place.check(0);
    assert!(
        out.contains("2 of 3 samples have a prompt that ends in a space")
            && out.contains("(the first in line 2)"),
        "{out}"
    );
    let data = place.text("data");
    let run = place.text("run");
    let args = ["train", "--model", &model, "--data", &data, "--out", &run, "--steps", "1", "--set", "r=2"];
    let (_, err) = output(mixlora(&args), 0);
    assert!(
        err.contains("2 with a prompt that has other tokens without its completion (the first in line 2)"),
        "{err}"
    );
}

#[test]
fn odd_samples_are_counted() {
    let place = empty_place();
    let lines = [
        talk(),
        talk(),
        json!({ "messages": [turn("user", "q"), turn("assistant", "")] }),
        json!({ "messages": [turn("user", "alone")] }),
        json!({ "messages": [turn("user", "q"), turn("user", "r"), turn("assistant", "a")] }),
    ];
    place.write("train.jsonl", lines.map(|l| format!("{l}\n")).concat());
    place.write("valid.jsonl", talk().to_string());
    let (out, _) = place.check(0);
    for wanted in [
        "1 of 5 samples have no turn of the assistant: there is nothing to train (the first in line 4)",
        "1 of 5 samples have an empty answer: the model learns to say nothing (the first in line 3)",
        "1 of 5 samples have two turns of one role in a row (the first in line 5)",
        "1 of 5 samples have the text of an earlier sample (the first in line 2)",
    ] {
        assert!(out.contains(&format!("train.jsonl: {wanted}")), "{out}");
    }
    assert!(out.contains("valid.jsonl: 1 of 1 samples are also in"), "{out}");
    let many = (0..15).fold(talk(), |sample, i| with(sample, &format!("key{i}"), json!(i)));
    place.write("train.jsonl", many.to_string());
    let (out, _) = place.check(0);
    assert!(out.contains("their samples: key0 (1), key1 (1)") && out.contains(" and 5 more\n"), "{out}");
}
