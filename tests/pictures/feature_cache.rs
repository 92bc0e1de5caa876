//! Features of pictures in files: found again, and never taken where they are another's.
#![cfg(all(feature = "cli", feature = "tokenizer", feature = "images"))]

use crate::common::cli::{mixlora, output};
use crate::common::seeing;
use serde_json::Value;
use std::path::{Path, PathBuf};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        std::fs::create_dir(place.path("model")).unwrap();
        seeing::copy("vlm_idefics3", &place.path("model"));
        seeing::picture_data(place.0.path());
        place
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }
    fn run(&self, command: &str, more: &[&str], code: i32) -> (String, String) {
        let (model, data) = (self.text("model"), self.text("data"));
        let own = [command, "--model", &model, "--data", &data, "--device", "cpu"];
        let mut command = mixlora(&[&own[..], more].concat());
        output(command.env("MIXLORA_CACHE", self.path("home")), code)
    }
    fn train(&self, out: &str, more: &[&str], code: i32) -> String {
        let own = ["--out", &self.text(out), "--method", "lora", "--steps", "3", "--projector-lr", "1e-3"];
        self.run("train", &[&own[..], more].concat(), code).1
    }
    /// The trained values of a run.
    fn trained(&self, out: &str) -> Vec<u8> {
        let read = |file: &str| std::fs::read(self.path(out).join("step-000003").join(file)).unwrap();
        [read("adapter_model.safetensors"), read("projector.safetensors")].concat()
    }
    /// The files of features below a folder.
    fn files(&self, name: &str) -> Vec<PathBuf> {
        let mut all = Vec::new();
        let mut open = vec![self.path(name)];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { open.push(path) } else { all.push(path) }
            }
        }
        all.sort();
        all
    }
}

/// A change of one byte.
fn damage(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_second_run_does_not_run_the_tower_and_learns_the_same_bits() {
    let place = Place::new();
    let cache = place.text("cache");
    let cached = ["--feature-cache", cache.as_str()];
    place.train("plain", &[], 0);
    assert!(place.files("home").iter().all(|path| path.extension().is_none_or(|end| end != "features")));
    let said = place.train("first", &cached, 0);
    assert!(said.contains("0 pictures known, 2 shown to the tower"), "{said}");
    let said = place.train("second", &cached, 0);
    assert!(said.contains("2 pictures known, 0 shown to the tower"), "{said}");
    // What is in files is mapped and not in memory.
    let said = place.train("mapped", &[&cached[..], &["--feature-memory", "0.001KiB"]].concat(), 0);
    assert!(said.contains("2 pictures known") && said.contains("0.0 MiB in memory"), "{said}");
    // Above the memory features go to the user's cache folder where no other is named.
    let said = place.train("small", &["--feature-memory", "0.001KiB"], 0);
    assert!(said.contains("2 shown to the tower") && said.contains("home"), "{said}");
    for run in ["first", "second", "mapped", "small"] {
        assert!(place.trained("plain") == place.trained(run), "{run}");
    }
    // eval sees the same pictures, and says the same.
    let (plain, _) = place.run("eval", &["--json"], 0);
    let (found, said) = place.run("eval", &[&["--json"][..], &cached].concat(), 0);
    assert!(said.contains("2 pictures known, 0 shown to the tower"), "{said}");
    let json = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    assert_eq!(json(&plain)["loss"], json(&found)["loss"]);
    // A run that goes on may take another folder, or none.
    place.train("stopped", &[&cached[..], &["--stop-at", "1"]].concat(), 0);
    let other = place.text("other");
    let resume = ["train", "--resume", &place.text("stopped"), "--feature-cache", &other];
    let (_, said) = output(&mut mixlora(&resume), 0);
    assert!(said.contains("2 shown to the tower"), "{said}");
    assert!(place.trained("plain") == place.trained("stopped"));
}

#[test]
fn what_is_damaged_or_of_another_is_made_anew() {
    let place = Place::new();
    let cache = place.text("cache");
    let cached = ["--feature-cache", cache.as_str()];
    place.train("plain", &[], 0);
    place.train("first", &cached, 0);
    let [file] = &place.files("cache")[..] else { panic!("one file") };
    // A value, then the index.
    let length = std::fs::metadata(file).unwrap().len() as usize;
    for (number, at) in [80, length - 30].into_iter().enumerate() {
        let [file] = &place.files("cache")[..] else { panic!("one file") };
        damage(file, at);
        let run = format!("damaged-{number}");
        let said = place.train(&run, &cached, 0);
        assert!(said.contains("is damaged") && said.contains("shown to the tower"), "{said}");
        assert!(place.trained("plain") == place.trained(&run), "byte {at}");
        let said = place.train(&format!("{run}-again"), &cached, 0);
        assert!(said.contains("2 pictures known") && !said.contains("damaged"), "{said}");
    }
    // A file of something else stays.
    let [file] = &place.files("cache")[..] else { panic!("one file") };
    let foreign = file.with_file_name("a.features");
    std::fs::write(&foreign, "something else").unwrap();
    let said = place.train("foreign", &cached, 0);
    assert!(said.contains("left alone") && said.contains("2 pictures known"), "{said}");
    assert_eq!(std::fs::read(&foreign).unwrap(), b"something else");
    // Another picture under the same name is another picture.
    std::fs::copy(place.path("data/blue.png"), place.path("data/red.png")).unwrap();
    let said = place.train("other picture", &cached, 0);
    assert!(said.contains("pictures known, 0 shown"), "{said}");
    // Another tower has features of its own.
    edit_tower(&place.path("model/model.safetensors"));
    let said = place.train("other tower", &cached, 0);
    assert!(said.contains("0 pictures known"), "{said}");
    // And so has another preparation.
    let path = place.path("model/preprocessor_config.json");
    let mut settings: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    settings["image_mean"] = serde_json::json!([0.4, 0.5, 0.5]);
    std::fs::write(&path, settings.to_string()).unwrap();
    let said = place.train("other preparation", &cached, 0);
    assert!(said.contains("0 pictures known"), "{said}");
}

/// Changes values of a tower.
fn edit_tower(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let ending = "embeddings.patch_embedding.weight";
    let found = header.as_object().unwrap().iter().find(|(name, _)| name.ends_with(ending)).unwrap();
    let at = 8 + length + found.1["data_offsets"][0].as_u64().unwrap() as usize;
    let mut bytes = bytes;
    bytes[at..at + 4].copy_from_slice(&0.25f32.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

/// A disk that is full, or a folder that is none: an error that says what can be done, and no run.
#[cfg(unix)]
#[test]
fn features_that_cannot_be_written_are_an_error() {
    let place = Place::new();
    std::fs::write(place.path("file"), "").unwrap();
    let said = place.train("none", &["--feature-cache", &place.text("file")], 3);
    assert!(said.contains("file"), "{said}");
    // Files above 8 KiB cannot be written.
    let program = env!("CARGO_BIN_EXE_mixlora");
    let (model, data, cache) = (place.text("model"), place.text("data"), place.text("cache"));
    let script = format!(
        "trap '' XFSZ; ulimit -f 8; exec '{program}' eval --model '{model}' --data '{data}' --device cpu \
         --feature-cache '{cache}'"
    );
    let mut command = std::process::Command::new("sh");
    command.arg("-c").arg(script).env("MIXLORA_CACHE", place.path("home"));
    let (_, said) = output(&mut command, 3);
    assert!(said.contains("cannot be written") && said.contains("--feature-memory"), "{said}");
    assert_eq!(place.files("cache"), Vec::<PathBuf>::new());
    assert!(!place.path("none").exists());
}
