//! Vision parts beside models that have none: a tower alone with a new projector, and mmproj files.
#![cfg(all(feature = "cli", feature = "tokenizer", feature = "images"))]

use crate::common::cli::{mixlora, output};
use crate::common::{seeing, tiny};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

struct Place(tempfile::TempDir);

impl Place {
    /// A model for text, the tower of a LLaVA, and data about two pictures.
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        tiny::write_text_model(&place.path("text"));
        place.tower("tower");
        seeing::picture_data(place.0.path());
        place
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }
    /// A directory with the tower of a LLaVA alone.
    fn tower(&self, name: &str) {
        let from = seeing::golden().join("vlm_llava15_new_names");
        let read = |file: &str| -> Value {
            serde_json::from_slice(&std::fs::read(from.join(file)).unwrap()).unwrap()
        };
        std::fs::create_dir(self.path(name)).unwrap();
        for file in ["model.safetensors", "preprocessor_config.json"] {
            std::fs::copy(from.join(file), self.path(name).join(file)).unwrap();
        }
        let config = &read("config.json")["vision_config"];
        std::fs::write(self.path(name).join("config.json"), config.to_string()).unwrap();
    }
    fn run(&self, command: &[&str], more: &[&str], code: i32) -> (String, String) {
        let (model, tower) = (self.text("text"), self.text("tower"));
        let own = ["--model", &model, "--vision", &tower];
        output(mixlora(&[command, &own[..], more].concat()), code)
    }
    fn train(&self, out: &str, more: &[&str], code: i32) -> (String, String) {
        let (data, out) = (self.text("data"), self.text(out));
        let own = [
            "--data",
            &data,
            "--out",
            &out,
            "--method",
            "lora",
            "--learning-rate",
            "1e-2",
            "--device",
            "cpu",
        ];
        self.run(&["train"], &[&own[..], more].concat(), code)
    }
    fn says(&self, picture: &str, more: &[&str]) -> String {
        let picture = self.text(&format!("data/{picture}.png"));
        let asked = ["--image", &picture, "--prompt", "What is it?", "--device", "cpu"];
        self.run(&["generate"], &[&asked[..], more].concat(), 0).0
    }
}

/// A model for text learns what is on pictures, through a projector that begins at random.
#[test]
fn a_tower_beside_a_text_model_is_learned_to_be_read() {
    let place = Place::new();
    let (_, said) = place.train("none", &["--steps", "2"], 3);
    assert!(said.contains("tower alone") && said.contains("--projector-learning-rate"), "{said}");
    assert!(!place.path("none").exists());
    let rate = ["--projector-learning-rate", "1e-2", "--steps", "60", "--micro-batch", "5"];
    place.train("run", &rate, 0);
    let run = place.text("run");
    let trained = ["--adapter", run.as_str()];
    assert_eq!(place.says("red", &trained), "red\n");
    assert_eq!(place.says("blue", &trained), "blue\n");
    let (out, _) = place.run(&["eval"], &["--data", &place.text("data"), "--json", "--adapter", &run], 0);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["exact_match"], json!(1.0), "{out}");
    // The same run again gives the same bytes, stopped on its way or not.
    place.train("again", &[&rate[..], &["--stop-at", "25"]].concat(), 0);
    output(mixlora(&["train", "--resume", &place.text("again")]), 0);
    for file in ["adapter_model.safetensors", "projector.safetensors"] {
        assert_eq!(last(&place.path("run"), file), last(&place.path("again"), file), "{file}");
    }
    // Without what was trained, the projector is a random one.
    let picture = place.text("data/red.png");
    let (_, said) = place.run(&["generate"], &["--image", &picture, "--prompt", "What is it?"], 0);
    assert!(said.contains("drawn at random"), "{said}");
    // A picture's place without a picture is no token of the model.
    let (_, said) = place.run(&["generate"], &["--prompt", "<image> What?"], 3);
    assert!(said.contains("no picture is given"), "{said}");
}

/// A new projector learns alone first, once: a run that goes on takes it from the checkpoint.
#[test]
fn a_new_projector_is_aligned_before_the_first_step() {
    let place = Place::new();
    let own = ["--projector-learning-rate", "1e-3", "--align-epochs", "40", "--steps", "4"];
    let (_, said) = place.train("run", &own, 0);
    assert!(said.contains("projector aligned to 2 answers of 4 examples"), "{said}");
    let metrics = std::fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let aligned: Vec<Value> = lines.filter(|line| line["t"] == "align").collect();
    let [aligned] = &aligned[..] else { panic!("{metrics}") };
    let loss = |name: &str| aligned["projector"][name].as_f64().unwrap();
    assert!(loss("last_loss") < 0.3 * loss("first_loss"), "{aligned}");
    place.train("again", &[&own[..], &["--stop-at", "2"]].concat(), 0);
    let (_, said) = output(mixlora(&["train", "--resume", &place.text("again")]), 0);
    assert!(!said.contains("aligned"), "{said}");
    for file in ["adapter_model.safetensors", "projector.safetensors"] {
        assert_eq!(last(&place.path("run"), file), last(&place.path("again"), file), "{file}");
    }
    // A projector that belongs to its model is not aligned.
    let llava = seeing::golden().join("vlm_llava15_new_names");
    let (model, data, out) = (llava.to_string_lossy(), place.text("data"), place.text("none"));
    let train = ["train", "--model", &model, "--data", &data, "--out", &out, "--method", "lora"];
    let (_, said) = output(mixlora(&[&train[..], &own].concat()), 3);
    assert!(said.contains("train.align_epochs"), "{said}");
}

/// A file of the last checkpoint of a run.
fn last(run: &Path, name: &str) -> Vec<u8> {
    let mut all: Vec<PathBuf> = Vec::new();
    let mut open = vec![run.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.ends_with(name) {
                all.push(path);
            }
        }
    }
    all.sort();
    std::fs::read(all.last().unwrap_or_else(|| panic!("no {name} in {}", run.display()))).unwrap()
}

/// An exported vision part sees what the directory of its tower does.
#[test]
fn an_exported_file_stands_beside_the_model_too() {
    let place = Place::new();
    place.train("run", &["--projector-learning-rate", "1e-2", "--steps", "60", "--micro-batch", "5"], 0);
    let (model, run, file) = (place.text("text"), place.text("run"), place.text("mmproj.gguf"));
    let tower = place.text("tower");
    let export = ["export", "--model", &model, "--vision", &tower, "--adapter", &run, "--mmproj", &file];
    output(mixlora(&export), 0);
    let picture = place.text("data/blue.png");
    let asked =
        ["generate", "--model", &model, "--mmproj", &file, "--image", &picture, "--prompt", "What is it?"];
    let with =
        |more: &[&str], code| output(mixlora(&[&asked[..], &["--adapter", &run], more].concat()), code);
    // Such files do not say whether pictures are padded or cropped.
    let (_, said) = with(&[], 3);
    assert!(said.contains("prepared in another way"), "{said}");
    assert_eq!(with(&["--force"], 0).0, "blue\n");
}

/// A LoRA is merged into the decoder of a model that sees, beside which the model's own vision part stands.
#[test]
fn a_merged_decoder_sees_with_the_vision_part_of_its_model() {
    let place = Place::new();
    std::fs::create_dir(place.path("llava")).unwrap();
    seeing::copy("vlm_llava15_new_names", &place.path("llava"));
    let (llava, data, run, merged) =
        (place.text("llava"), place.text("data"), place.text("run"), place.text("merged"));
    let of_llava = ["--model", &llava, "--device", "cpu"];
    let learn = ["train", "--data", &data, "--out", &run, "--method", "lora", "--lr", "1e-2", "--steps", "8"];
    output(mixlora(&[&learn[..], &of_llava].concat()), 0);
    let (_, said) = output(
        mixlora(&["merge", "--model", &llava, "--adapter", &run, "--out", &merged, "--dtype", "f32"]),
        0,
    );
    assert!(said.contains("--vision"), "{said}");
    let config: Value =
        serde_json::from_slice(&std::fs::read(place.path("merged/config.json")).unwrap()).unwrap();
    assert!(config["model_type"] == "llama" && config.get("vision_config").is_none(), "{config}");
    let red = place.text("data/red.png");
    let say = |of: &[&str]| {
        let asked = ["generate", "--image", &red, "--prompt", "What is it?", "-n", "12", "--device", "cpu"];
        output(mixlora(&[&asked[..], of].concat()), 0).0
    };
    let adapted = say(&["--model", &llava, "--adapter", &run]);
    assert_eq!(say(&["--model", &merged, "--vision", &llava]), adapted);
    assert_ne!(say(&["--model", &llava]), adapted);
}

#[test]
fn what_is_no_vision_part_is_refused() {
    let place = Place::new();
    let refused = |vision: &str, what: &str| {
        let (model, picture) = (place.text("text"), place.text("data/red.png"));
        let asked = ["generate", "--model", &model, "--image", &picture, "--prompt", "x", "--vision", vision];
        let (_, said) = output(mixlora(&asked), 3);
        assert!(said.contains(what), "{what}: {said}");
    };
    refused(&place.text("text"), "the towers that are read are");
    refused(&place.text("missing.gguf"), "missing.gguf");
    let clip = seeing::golden().join("vlm_idefics3/mmproj.gguf");
    refused(&clip.to_string_lossy(), "it belongs to another model");
    let config = place.path("tower/config.json");
    let mut own: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    own["mm_projector_type"] = json!("resampler");
    std::fs::write(&config, own.to_string()).unwrap();
    refused(&place.text("tower"), "mm_projector_type");
    let model = place.text("text");
    let picture = place.text("data/red.png");
    let (_, said) =
        output(mixlora(&["generate", "--model", &model, "--image", &picture, "--prompt", "x"]), 3);
    assert!(said.contains("--vision gives it one"), "{said}");
}
