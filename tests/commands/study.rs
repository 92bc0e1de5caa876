//! `mixlora study` from its file to its report, and what it refuses.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use crate::common::cli::answer_to;
use mixlora::Stream;
use mixlora::adapter::{ALL_LINEAR, Adapter};
use mixlora::data::{Dataset, Encoder, read_samples};
use mixlora::mixture::find;
use mixlora::model::Model;
use mixlora::study::{Cell, Study};
use mixlora::text::ModelText;
use mixlora::train::{
    End, GeneralPrompts, Inputs, Questions, Run, RunConfig, Stop, TextOptions, score_forced,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const WORDS: [&str; 12] =
    ["sun", "rain", "wind", "snow", "fog", "hail", "dew", "frost", "sea", "lake", "hill", "tree"];

/// A place with two tasks whose answers to the same words contradict each other.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("data")).unwrap();
        for (part, words) in [("train", &WORDS[..6]), ("tuning", &WORDS[6..9]), ("final", &WORDS[9..])] {
            let mut text = String::new();
            for word in words {
                for (task, answer) in [("colour", "red"), ("size", "tall")] {
                    let line = json!({ "prompt": format!("{task} of {word}: "), "completion": answer, "task": task });
                    text += &format!("{line}\n");
                }
            }
            fs::write(dir.path().join(format!("data/{part}.jsonl")), text).unwrap();
        }
        Place(dir)
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }
    fn tree(&self) -> Value {
        json!({
            "title": "Two tasks",
            "run": {
                "model": "data/tiny",
                "data": self.text("data"),
                "train": { "steps": 12, "micro_batch": 4 },
                "text": { "allow_untrained_eos": true },
                "device": { "name": "cpu" },
            },
            "learning_rates": [1e-3, 1e-2],
            "seeds": [0, 1],
            "baselines": ["plain"],
            "methods": [
                { "name": "plain", "method": "lora", "options": { "r": 2 } },
                { "name": "fitted", "method": "mixlora-fitted", "options": { "r": 2, "own": 1 } },
            ],
        })
    }
    fn write(&self, name: &str, tree: &Value) -> String {
        fs::write(self.path(name), tree.to_string()).unwrap();
        self.text(name)
    }
    fn cells(&self, out: &str) -> BTreeMap<String, Cell> {
        let entries = fs::read_dir(self.path(out).join("cells")).unwrap().map(|entry| entry.unwrap().path());
        let finished = entries.filter(|path| path.extension().is_some_and(|ending| ending == "json"));
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let read = |path: PathBuf| (name(&path), serde_json::from_slice(&fs::read(&path).unwrap()).unwrap());
        finished.map(read).collect()
    }
}

/// A report without its times.
fn unmeasured(report: &Path) -> Value {
    let mut report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert!(report.as_object_mut().unwrap().remove("measured").is_some());
    report
}

#[test]
fn a_study_that_is_killed_goes_on_and_ends_as_one_that_was_not() {
    let place = Place::new();
    let file = place.write("study.json", &place.tree());
    let (report, said) = answer_to(&["study", &file, "--out", &place.text("whole")], "", 0);
    assert!(report.contains("# Two tasks") && report.contains("fitted"), "{report}");
    assert!(said.contains("run 6 of 6"), "{said}");
    let whole = place.cells("whole");
    assert_eq!(whole.len(), 6);
    assert!(whole.values().all(|cell| cell.steps == 12 && cell.forgotten.is_some()));
    assert!(whole.values().filter(|cell| cell.name == "fitted").all(|cell| cell.router == Some(1.0)));

    let mut child = Command::new(env!("CARGO_BIN_EXE_mixlora"))
        .args(["study", &file, "--out", &place.text("killed")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let cells = place.path("killed").join("cells");
    while fs::read_dir(&cells).map_or(0, |entries| entries.count()) < 2 {
        assert!(began.elapsed() < Duration::from_secs(120), "no cell was finished");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let finished = place.cells("killed");
    assert!((1..6).contains(&finished.len()));
    let written = |name: &String| fs::metadata(cells.join(name)).unwrap().modified().unwrap();
    let times: Vec<_> = finished.keys().map(written).collect();
    let (dry, said) = answer_to(&["study", &file, "--out", &place.text("killed"), "--dry-run"], "", 0);
    assert!(said.contains(&format!("{} runs are finished", finished.len())), "{said}");
    assert!(dry.contains("# Two tasks") && place.cells("killed").len() == finished.len());

    answer_to(&["study", &file, "--out", &place.text("killed"), "--jobs", "2"], "", 0);
    assert_eq!(finished.keys().map(written).collect::<Vec<_>>(), times, "finished runs were trained again");
    let unmeasured_cell = |cell: &Cell| {
        let mut cell = serde_json::to_value(cell).unwrap();
        cell.as_object_mut().unwrap().remove("measured");
        cell
    };
    for (name, cell) in place.cells("killed") {
        assert_eq!(unmeasured_cell(&cell), unmeasured_cell(&whole[&name]), "{name}");
    }
    let reports = ["whole", "killed"].map(|out| unmeasured(&place.path(out).join("report.json")));
    assert_eq!(reports[0], reports[1]);

    // Finished runs are those of this study alone.
    let mut other = place.tree();
    other["run"]["train"]["steps"] = 13.into();
    let other = place.write("other.json", &other);
    let (_, said) = answer_to(&["study", &other, "--out", &place.text("whole")], "", 3);
    assert!(said.contains("other settings than those of the study"), "{said}");
    let mut other = place.tree();
    other["methods"][0]["options"]["r"] = 3.into();
    let other = place.write("other.json", &other);
    let (_, said) = answer_to(&["study", &other, "--out", &place.text("whole")], "", 3);
    assert!(said.contains("other options than those of the study"), "{said}");
}

#[test]
fn methods_that_choose_by_task_are_compared_without_general_prompts() {
    let place = Place::new();
    let mut tree = place.tree();
    tree["learning_rates"] = json!([1e-3]);
    tree["seeds"] = json!([0]);
    tree["baselines"] = json!([]);
    tree["methods"] = json!([{ "name": "by task", "method": "moelora" }]);
    let file = place.write("study.json", &tree);
    answer_to(&["study", &file, "--out", &place.text("out")], "", 0);
    let cells = place.cells("out");
    assert!(cells.len() == 1 && cells.values().all(|cell| cell.forgotten.is_none()));
}

#[test]
fn a_rate_at_which_training_diverges_is_named() {
    let place = Place::new();
    let mut tree = place.tree();
    tree["learning_rates"] = json!([1e-3, 1e30]);
    tree["methods"] = json!([{ "name": "plain", "method": "lora", "options": { "r": 2 } }]);
    let file = place.write("study.json", &tree);
    let (_, said) = answer_to(&["study", &file, "--out", &place.text("out")], "", 6);
    assert!(said.contains("plain-1e30-0.json") && said.contains("out of the grid"), "{said}");
    assert_eq!(place.cells("out").len(), 1, "what was finished stays");
}

#[test]
fn what_cannot_be_compared_is_refused_with_its_place() {
    let place = Place::new();
    let refused = |change: &dyn Fn(&mut Value), expected: &[&str]| {
        let mut tree = place.tree();
        change(&mut tree);
        let file = place.write("bad.json", &tree);
        let (_, said) = answer_to(&["study", &file, "--out", &place.text("bad")], "", 3);
        for text in expected {
            assert!(said.contains(text), "{said}");
        }
        assert!(!place.path("bad/cells").exists() || place.cells("bad").is_empty());
    };
    refused(
        &|t| t["methods"][1]["method"] = "mixlora-fited".into(),
        &["bad.json", "methods[1]", "mixlora-fitted"],
    );
    refused(&|t| t["methods"][0]["options"]["rank"] = 3.into(), &["methods[0].options.rank", "options.r"]);
    refused(&|t| t["methods"] = json!([]), &["methods", "at least one"]);
    refused(&|t| t["learning_rates"] = json!([]), &["learning_rates", "empty"]);
    refused(&|t| t["learning_rates"] = json!([1e-2, 1e-3]), &["learning_rates", "rising"]);
    refused(&|t| t["seeds"] = json!([1, 1]), &["seeds", "none twice"]);
    refused(&|t| t["methods"][1]["name"] = "Plain".into(), &["comes twice"]);
    refused(&|t| t["baselines"] = json!(["lora"]), &["baselines", "'lora'"]);
    refused(&|t| t["parts"] = json!(["final"]), &["parts", "'final'"]);
    refused(&|t| t["parts"] = json!(["wording"]), &["has no wording.jsonl"]);
    refused(&|t| t["run"]["train"]["seed"] = 3.into(), &["run.train.seed", "seeds"]);
    refused(&|t| t["run"]["train"]["stepz"] = 3.into(), &["run.train.stepz", "did you mean 'steps'"]);
    refused(&|t| t["rates"] = json!([1]), &["rates"]);
    fs::write(place.path("data/final.jsonl"), "{\"prompt\": \"a: \", \"completion\": \"b\"}\n").unwrap();
    refused(&|_| (), &["final.jsonl", "without a task"]);
}

/// A model that has learned the two tasks a little.
fn trained(place: &Place) -> (Arc<Model>, Adapter, ModelText, Encoder, Dataset, Questions) {
    let study = Study::new(&place.tree()).unwrap();
    let mut config: RunConfig = study.rows[0].config.clone();
    config.data = place.path("data/train.jsonl");
    config.train.steps = Some(60);
    config.train.learning_rate = 1e-2;
    let mut run = Run::open(config.clone(), None, &mut ()).unwrap();
    assert_eq!(run.go(&Stop::default(), &mut ()).unwrap(), End::Finished);
    let text = ModelText::open("data/tiny".as_ref()).unwrap();
    let encoder = config.text.encoder(&text).unwrap();
    let path = place.path("data/train.jsonl");
    let samples = read_samples(&path).unwrap();
    let data = encoder.dataset(&path, &samples).unwrap();
    let questions = Questions::new(&text, &encoder, &samples, 32).unwrap();
    (run.session.model.clone(), run.session.adapter.clone(), text, encoder, data, questions)
}

#[test]
fn one_pass_tells_what_generating_answers() {
    let place = Place::new();
    let (model, adapter, text, _, data, questions) = trained(&place);
    let ends = text.tokenizer.end_tokens();
    for adapter in [None, Some(&adapter)] {
        let forced = score_forced(&model, adapter, &data, 0, &ends).unwrap();
        let answers = questions.answer(&model, adapter, &mut |_| true).unwrap();
        for ((score, answer), question) in forced.iter().zip(answers).zip(&questions.list) {
            assert_eq!(score.right, answer.unwrap().trim() == question.reference, "{question:?}");
        }
        let right = forced.iter().filter(|score| score.right).count();
        assert_eq!(right > 6, adapter.is_some(), "{right} of {}", forced.len());
    }
}

#[test]
fn general_prompts_tell_a_changed_model_from_itself() {
    let place = Place::new();
    let (model, adapter, text, encoder, _, _) = trained(&place);
    let general = GeneralPrompts::new(&model, &text, &encoder).unwrap();
    let fresh =
        Adapter::attach(&model, &find("lora").unwrap().defaults(), &[ALL_LINEAR.into()], Stream::new(1));
    let same = general.forgotten(&model, fresh.unwrap()).unwrap();
    assert!(same.kl < 1e-9 && same.unchanged == 1.0, "{same:?}");
    let changed = general.forgotten(&model, &adapter).unwrap();
    assert!(changed.kl > 0.1 && changed.unchanged < 0.5, "{changed:?}");
    assert_eq!(changed.prompts, same.prompts);
}

#[test]
fn a_fitted_router_needs_labels_to_train_and_none_to_answer() {
    let place = Place::new();
    let mut config = RunConfig::defaults(find("mixlora-fitted").unwrap()).unwrap();
    config.model = "data/tiny".into();
    config.data = place.path("data/train.jsonl");
    config.text = TextOptions { allow_untrained_eos: true, ..TextOptions::default() };
    config.device.name = "cpu".into();
    config.train.steps = Some(1);
    let run = Run::open(config.clone(), Some(&place.path("run")), &mut ()).unwrap();
    let note = "the fitted router puts 12 of 12 training prompts into the group of their task";
    assert!(run.notes().iter().any(|text| text == note), "{:?}", run.notes());
    let inputs = Inputs::read(config.clone()).unwrap();
    assert_eq!(run.told_apart(&inputs.train).unwrap(), Some(1.0));
    drop(run);

    // Clusters need no labels; without either there is nothing to fit to.
    let text = fs::read_to_string(&config.data).unwrap();
    let unlabelled: String = text
        .lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            line.as_object_mut().unwrap().remove("task");
            format!("{line}\n")
        })
        .collect();
    config.data = place.path("unlabelled.jsonl");
    fs::write(&config.data, unlabelled).unwrap();
    let error = Run::open(config.clone(), None, &mut ()).err().unwrap().to_string();
    assert!(error.contains("have no task"), "{error}");
    config.method = config.method.with("clusters", 2).unwrap();
    let run = Run::open(config.clone(), None, &mut ()).unwrap();
    assert_eq!(run.session.adapter.sites().before().unwrap().params()[0].value().dims()[0], 2);
    config.method = config.method.with("clusters", 13).unwrap();
    let error = Run::open(config, None, &mut ()).err().unwrap().to_string();
    assert!(error.contains("at most 12"), "{error}");
}
