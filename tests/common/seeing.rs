//! Tiny models that see, and data about pictures.

use mixlora::io::Checkpoint;
use serde_json::json;
use std::path::{Path, PathBuf};

/// The folder of reference files about pictures.
pub fn golden() -> PathBuf {
    super::edit::golden().join("vision")
}

/// A copy of a model's folder.
pub fn copy(model: &str, to: &Path) {
    for entry in std::fs::read_dir(golden().join(model)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// A folder of LLaVA's data about two pictures, with one sample of text alone.
pub fn picture_data(folder: &Path) -> String {
    let file = Checkpoint::open(golden().join("vlm_idefics3/expected.safetensors")).unwrap();
    let data = folder.join("data");
    std::fs::create_dir(&data).unwrap();
    for (name, tensor) in [("red.png", "image.0.0"), ("blue.png", "image.1.0")] {
        std::fs::write(data.join(name), file.tensor_bytes(tensor).unwrap()).unwrap();
    }
    let sample = |name: &str, task: &str| {
        let turns = json!([
            { "from": "human", "value": "<image>\nWhat is it?" },
            { "from": "gpt", "value": name },
        ]);
        json!({ "image": format!("{name}.png"), "task_name": task, "conversations": turns })
    };
    let text = json!([{ "from": "human", "value": "Is it?" }, { "from": "gpt", "value": "no" }]);
    let train = json!([
        sample("red", "one"),
        sample("blue", "two"),
        { "conversations": text },
        sample("red", "two"),
        sample("blue", "one"),
    ]);
    std::fs::write(data.join("train.json"), train.to_string()).unwrap();
    std::fs::write(data.join("valid.json"), json!([sample("red", "one"), sample("blue", "two")]).to_string())
        .unwrap();
    data.to_string_lossy().into_owned()
}
