//! `eval` on questions with answers to choose from.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use crate::common::cli::answer_to as run;
use crate::common::tiny;
use mixlora::adapter::{Adapter, Bank};
use mixlora::data::{Batch, Example, MultipleChoice, read_multiple_choice};
use mixlora::mixture::find;
use mixlora::model::Model;
use mixlora::text::ModelText;
use mixlora::train::{ChoiceOptions, losses_of, weigh_choices};
use mixlora::{Device, Stream, Tensor};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const FILES: [(&str, &str); 5] = [
    ("arc", "arc.jsonl"),
    ("boolq", "boolq.jsonl"),
    ("hellaswag", "hellaswag.json"),
    ("mmlu", "mmlu.jsonl"),
    ("plain", "plain.jsonl"),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(ROOT).join("tests/fixtures/choices").join(name)
}

fn eval(data: &Path, more: &[&str]) -> (Value, String) {
    let model = format!("{ROOT}/data/tiny");
    let args = ["eval", "--model", &model, "--data", data.to_str().unwrap(), "--json"];
    let (out, err) = run(&[&args[..], more].concat(), "", 0);
    (serde_json::from_str(&out).unwrap(), err)
}

fn close(found: &Value, wanted: &Value, tolerance: f64) {
    let [a, b] = [found, wanted].map(|value| value.as_f64().unwrap());
    assert!((a - b).abs() <= tolerance, "{a}, wanted {b}");
}

/// What lm-evaluation-harness and transformers gave for the tiny model: tests/fixtures/make_choices.py.
#[test]
fn choices_have_the_log_probabilities_and_scores_of_the_harness() {
    let wanted: Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("tiny.json")).unwrap()).unwrap();
    for (shape, file) in FILES {
        for in_chat in [false, true] {
            let name = if in_chat { format!("{shape}-chat") } else { shape.into() };
            let more: &[&str] = if in_chat { &["--choices-in-chat"] } else { &[] };
            let (found, err) = eval(&fixture(file), more);
            assert_eq!(found["shape"], shape);
            assert!(err.contains(&format!("{file} is read as questions")), "{err}");
            let wanted = &wanted[&name];
            // The reference has the questions of one task behind those of another.
            let asked = read_multiple_choice(&fixture(file), None).unwrap().questions;
            let task = |question: &MultipleChoice| question.task.clone().unwrap_or_else(|| shape.into());
            let mut order: Vec<usize> = (0..asked.len()).collect();
            order.sort_by_key(|at| task(&asked[*at]));
            let answers = wanted["answers"].as_array().unwrap();
            assert_eq!(order.len(), answers.len());
            for (at, answer) in order.iter().zip(answers) {
                assert_eq!(answer["task"], task(&asked[*at]));
                let own = found["answers"][at]["log_probabilities"].as_array().unwrap();
                let reference = answer["log_probabilities"].as_array().unwrap();
                assert_eq!(own.len(), reference.len());
                own.iter().zip(reference).for_each(|(own, reference)| close(own, reference, 1e-4));
            }
            let same = |found: &Value, wanted: &Value| {
                assert_eq!(found["questions"], wanted["questions"], "{name}");
                for key in ["acc", "acc_norm", "acc_bytes"] {
                    close(&found[key], &wanted[key], 1e-12);
                    let error = format!("{key}_stderr");
                    close(&found[&error], &wanted[&error], 1e-12);
                }
            };
            same(&found, &wanted["all"]);
            for (task, wanted) in wanted["tasks"].as_object().unwrap() {
                same(&found["tasks"][task], wanted);
            }
        }
    }
}

#[test]
fn choices_are_told_in_a_table_and_by_the_file_of_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("mmlu.jsonl"), dir.path().join("test.jsonl")).unwrap();
    let model = format!("{ROOT}/data/tiny");
    let data = dir.path().to_str().unwrap();
    let args = ["eval", "--model", &model, "--data", data];
    let (text, _) = run(&args, "", 0);
    let (found, _) = eval(dir.path(), &[]);
    for task in ["household_science", "village_history", "old_tools"] {
        let share = |key: &str| format!("{:.1} %", 100.0 * found["tasks"][task][key].as_f64().unwrap());
        let row = text.lines().find(|line| line.starts_with(task)).unwrap();
        assert!(row.contains(&share("acc")) && row.contains(&share("acc_norm_stderr")), "{text}");
    }
    assert!(text.lines().any(|line| line.starts_with("all  ")) && text.contains("shape of MMLU"), "{text}");
    // The first questions alone; sequences that go through the model one by one; the shape by its option.
    let (few, _) = eval(dir.path(), &["--limit", "3", "--micro-batch", "1", "--choices", "mmlu"]);
    assert_eq!(few["questions"], 3);
    for at in 0..3 {
        let [few, found] = [&few, &found]
            .map(|report| report["answers"][at]["log_probabilities"].as_array().unwrap().clone());
        assert_eq!((few.len(), found.len()), (4, 4));
        few.iter().zip(&found).for_each(|(few, found)| close(few, found, 1e-4));
    }
}

/// A copy of ARC's questions in gzip, and keys that are not read.
#[test]
fn exports_have_other_keys_and_packed_files() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("arc.jsonl.gz");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&std::fs::read(fixture("arc.jsonl")).unwrap()).unwrap();
    std::fs::write(&packed, gzip.finish().unwrap()).unwrap();
    let read = |path: &Path| read_multiple_choice(path, None).unwrap();
    assert_eq!(read(&packed), read(&fixture("arc.jsonl")));

    let of = |line: Value| {
        let path = dir.path().join("one.jsonl");
        std::fs::write(&path, line.to_string()).unwrap();
        read(&path).questions.remove(0)
    };
    let arc = of(json!({
        "question": "Q?", "choices": { "label": [1, 2], "text": ["x", "y"], "more": [[1]] }, "answerKey": 2,
        "prompt": null, "unread": { "deep": [1, { "a": 2 }] },
    }));
    assert_eq!((arc.prompt.as_str(), arc.answer), ("Question: Q?\nAnswer:", 1));
    let boolq = of(json!({ "passage": "P", "question": "q", "label": 1, "idx": 7 }));
    assert_eq!((boolq.prompt.as_str(), boolq.answer), ("P\nQuestion: q?\nAnswer:", 1));
    let hellaswag = of(json!({ "ctx": "He", "activity_label": "A", "endings": ["x [n] ", "y"], "label": 0 }));
    assert_eq!((hellaswag.prompt.as_str(), hellaswag.choices[0].as_str()), ("A: He", "x "));
    let mmlu = of(json!({ "question": "Q", "choices": ["x", "y"], "answer": "B" }));
    assert_eq!((mmlu.prompt.as_str(), mmlu.answer, mmlu.system.as_str()), ("Q\nA. x\nB. y\nAnswer:", 1, ""));
    // White space that is there is not doubled in a plain prompt.
    let plain = of(json!({ "prompt": "Say ", "choices": ["x", " y"], "answer": 0 }));
    assert_eq!([plain.continuation(0, false), plain.continuation(1, false)], ["x", " y"]);
}

/// Log-probabilities with an adapter are the losses of each sequence alone, whatever its router looks at.
#[test]
fn adapters_weigh_each_answer_as_its_own_sequence() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_text_model(dir.path());
    let model = Model::open(dir.path(), &Device::cpu()).unwrap();
    let text = ModelText::open(dir.path()).unwrap();
    let path = dir.path().join("choices.jsonl");
    let lines = [
        json!({ "prompt": "one or two:", "choices": ["a", "b", "cde", "cdx"], "answer": 0 }),
        json!({ "prompt": "x", "choices": ["yes", "no"], "answer": 1 }),
    ];
    std::fs::write(&path, lines.map(|line| line.to_string() + "\n").concat()).unwrap();
    let questions = read_multiple_choice(&path, None).unwrap().questions;
    for pool in ["prompt_mask", "all", "real", "last_token"] {
        let method = find("mixlora-cond").unwrap().defaults();
        let options = method.with("r", 2).and_then(|o| o.with("num_factors", 4)).unwrap();
        let options = options.with("pool", pool).unwrap();
        let adapter = Adapter::attach(&model, &options, &["all-linear".into()], Stream::new(3)).unwrap();
        for param in adapter.params() {
            let value = param.value();
            let values = Stream::new(5).named(&param.name()).normal_vec(value.len(), 0.1);
            param.set(Tensor::from_f32(model.device(), value.dims(), &values).unwrap()).unwrap();
        }
        let bank = Bank::from(&adapter);
        // This pool looks at the padding of a batch too, as released.
        let together = if pool == "all" { 1 } else { 3 };
        let options = ChoiceOptions { in_chat: false, together };
        let weighed = weigh_choices(&model, &text, &bank, &questions, options, &mut |_| ()).unwrap();
        let base = weigh_choices(&model, &text, None, &questions, options, &mut |_| ()).unwrap();
        for ((question, weighed), base) in questions.iter().zip(&weighed).zip(&base) {
            for (choice, found) in weighed.log_probabilities.iter().enumerate() {
                let answer = question.continuation(choice, false);
                let ids = text.tokenizer.encode(&(question.prompt.clone() + &answer), true).unwrap();
                let before = question.prompt.len();
                let trained = (0..ids.len()).map(|at| at >= before).collect();
                let example = Example { prompt: before, ..Example::new(ids, trained) };
                let batch = Batch::new(&[&example], bank.framing(), 258, model.device()).unwrap();
                let loss = losses_of(&model, &bank, &batch).unwrap()[0];
                assert!((found + loss).abs() < 1e-4, "{pool}: {found}, alone {}", -loss);
                assert!((found - base.log_probabilities[choice]).abs() > 1e-3, "{pool}: the adapter acts");
            }
        }
    }
}

#[test]
fn questions_that_cannot_be_asked_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.jsonl");
    let model = format!("{ROOT}/data/tiny");
    let refused = |content: &str, more: &[&str]| {
        std::fs::write(&path, content).unwrap();
        let args = ["eval", "--model", &model, "--data", path.to_str().unwrap()];
        run(&[&args[..], more].concat(), "", 3).1
    };
    let good = r#"{"prompt": "a", "choices": ["x", "y"], "answer": 0}"#;
    for (line, says) in [
        (
            r#"{"prompt": "a", "options": ["x", "y"], "answer": 0}"#,
            "has no choices as a list of texts; the shape of prompt and choices has prompt",
        ),
        (r#"{"prompt": "a", "choices": ["x", "y"]}"#, "has no answer; the shape of prompt and choices has"),
        (r#"{"prompt": "a", "choices": ["x", "y"], "answer": 2}"#, "must be the index of a choice, 0 to 1"),
        (r#"{"prompt": "a", "choices": ["x", "y"], "answer": -1}"#, "hides its answers"),
        (r#"{"prompt": "a", "choices": ["x", "y"], "answer": 0.5}"#, "answer: "),
        (r#"{"prompt": "a", "choices": ["x", "y"], "answer": true}"#, "must be the index of a choice"),
        (r#"{"prompt": "a", "choices": [], "answer": 0}"#, "there are no choices"),
        (r#"{"prompt": "a", "choices": ["x"], "answer": 0}"#, "there is one choice only"),
        (r#"{"prompt": "a", "choices": ["x", " "], "answer": 0}"#, "choice 1, counted from 0, is empty"),
        (r#"{"prompt": " ", "choices": ["x", "y"], "answer": 0}"#, "the prompt is empty"),
        (r#"{"prompt": 3, "choices": ["x", "y"], "answer": 0}"#, "prompt: "),
        (r#"{"prompt": "a", "choices": ["x", 4], "answer": 0}"#, "choices[1]: "),
        (r#"{"prompt": "a", "choices": "x, y", "answer": 0}"#, "choices: "),
        (r#"{"prompt": "a", "choices": ["x", "y"], "answer": 0"#, "EOF while parsing"),
        (r#"["a"]"#, "bad.jsonl:2:"),
        (
            r#"{"question": "q", "choices": ["x", "y"], "answer": 0}"#,
            "is in the shape of MMLU, not of prompt and choices: a file holds questions of one shape",
        ),
        (
            &format!(r#"{{"prompt": "a", "choices": [{}"x"], "answer": 0}}"#, r#""y", "#.repeat(100)),
            "more than 100",
        ),
    ] {
        let err = refused(&format!("{good}\n{line}\n"), &[]);
        assert!(err.contains("bad.jsonl:2:") && err.contains(says), "{line}: {err}");
    }
    std::fs::write(&path, r#"{"prompt": "a", "options": ["x", "y"], "answer": 0}"#).unwrap();
    let err = read_multiple_choice(&path, None).unwrap_err().to_string();
    assert!(err.contains("has no answers to choose from; known are ARC (question, choices with"), "{err}");
    let arc = |key: &str, label: &str| {
        let choices = format!(r#"{{"text": ["x", "y"], "label": {label}}}"#);
        refused(&format!(r#"{{"question": "q", "choices": {choices}, "answerKey": "{key}"}}"#), &[])
    };
    assert!(arc("C", r#"["A", "B"]"#).contains(r#"answerKey: is "C", must be one of the labels A, B"#));
    assert!(arc("", r#"["A", "B"]"#).contains("take its validation set"));
    assert!(arc("A", r#"["A"]"#).contains("2 texts, but 1 labels"));
    let err = refused(r#"{"question": "q", "choices": {"text": ["x", "y"]}, "answerKey": "A"}"#, &[]);
    assert!(err.contains("choices: has no list 'label'"), "{err}");
    let err = refused(r#"{"passage": "p", "question": "q", "answer": "perhaps"}"#, &[]);
    assert!(err.contains(r#"answer: is "perhaps", must be true or false"#), "{err}");
    let hellaswag = r#"{"ctx": "c", "activity_label": "a", "endings": ["x", "[gone]"], "label": "0"}"#;
    assert!(refused(hellaswag, &[]).contains("choice 1, counted from 0, is empty"));
    let hellaswag = r#"{"ctx": "c", "activity_label": "a", "endings": ["x", "y"], "label": ""}"#;
    assert!(refused(hellaswag, &[]).contains("hides its answers"));
    let err = refused(&format!("[{good},\n {}]", good.replace("0}", "9}")), &[]);
    assert!(err.contains("bad.jsonl:2:2") && err.contains("element 2: answer: is \"9\""), "{err}");
    // The option says what is meant where the keys do not.
    assert!(refused(good, &["--choices", "arc"]).contains("not of ARC"));
    assert!(refused("{\"text\": \"a\"}\n", &["--choices", "plain"]).contains("has no prompt"));
    assert!(refused("", &["--choices", "plain"]).contains("no question"));
}

#[test]
fn questions_that_do_not_fit_the_model_or_the_options_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.jsonl");
    let model = format!("{ROOT}/data/tiny");
    let args = ["eval", "--model", &model, "--data", path.to_str().unwrap()];
    let long = "many words ".repeat(300);
    // A prompt is cut at its start, as its end stands before the answer; an answer is not cut.
    std::fs::write(&path, json!({ "prompt": long, "choices": ["x", "y"], "answer": 0 }).to_string()).unwrap();
    let (out, err) = run(&args, "", 0);
    assert!(err.contains("1 prompts are cut at their start") && out.contains("plain"), "{err}");
    std::fs::write(&path, json!({ "prompt": "a", "choices": ["x", long], "answer": 0 }).to_string()).unwrap();
    let (_, err) = run(&args, "", 3);
    assert!(err.contains("line 1: choice 1, counted from 0,: has") && err.contains("context 256"), "{err}");

    std::fs::write(&path, json!({ "prompt": "a", "choices": ["x", "y"], "answer": 0 }).to_string()).unwrap();
    for (more, says) in [
        (&["--forgotten"][..], "--forgotten: the data have answers to choose from"),
        (&["--show", "3"], "--show: the data have answers to choose from"),
    ] {
        let (_, err) = run(&[&args[..], more].concat(), "", 2);
        assert!(err.contains(says), "{err}");
    }
    let (_, err) = run(&[&args[..], &["--choices", "quiz"]].concat(), "", 2);
    assert!(err.contains("arc, boolq, hellaswag, mmlu, plain"), "{err}");
    std::fs::write(&path, json!({ "prompt": "a", "completion": "b" }).to_string()).unwrap();
    let (_, err) = run(&[&args[..], &["--choices-in-chat"]].concat(), "", 2);
    assert!(err.contains("--choices-in-chat: the data have no answers to choose from"), "{err}");
}
