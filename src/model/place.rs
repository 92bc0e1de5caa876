//! From the path that a user gives to the model that it means.

use super::hub::hub_hint;
use crate::io::{PartName, listed};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Where a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelPlace {
    /// A GGUF file, or a part of one.
    Gguf(PathBuf),
    /// A Hugging Face directory.
    Folder(PathBuf),
}

impl ModelPlace {
    /// The model that a path stands for: a `.gguf` file, a directory with `config.json`, a directory that holds one
    /// GGUF model, or a file of such a directory (`model.safetensors`, `config.json`, ...).
    ///
    /// # Errors
    /// The directory holds something else (an adapter, a training run, several models): the error says what. What is
    /// missing in one that holds nothing known is for its reader to say.
    pub fn of(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::of_folder(path);
        }
        if let Some(what) = hub_hint(path) {
            return Err(Error::file(path, what));
        }
        let beside = path.extension().is_some_and(|e| e == "safetensors" || e == "json");
        if !(beside && path.is_file()) {
            return Ok(ModelPlace::Gguf(path.to_path_buf()));
        }
        match path.parent() {
            Some(folder) if folder != Path::new("") => Self::of_folder(folder),
            _ => Self::of_folder(Path::new(".")),
        }
    }

    /// The files that make the model: itself, or the configuration and weights of a directory.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let dir = match self {
            ModelPlace::Gguf(file) => return Ok(vec![file.clone()]),
            ModelPlace::Folder(dir) => dir,
        };
        let entries =
            std::fs::read_dir(dir).map_err(|error| Error::file(dir, format!("cannot be read: {error}")))?;
        let counts = |path: &PathBuf| {
            path.ends_with("config.json") || path.extension().is_some_and(|e| e == "safetensors")
        };
        let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(counts).collect();
        files.sort();
        Ok(files)
    }

    fn of_folder(dir: &Path) -> Result<Self> {
        if dir.join("config.json").is_file() {
            return Ok(ModelPlace::Folder(dir.to_path_buf()));
        }
        let missing = |hint: &str| Err(Error::file(dir.join("config.json"), format!("is missing; {hint}")));
        if dir.join("adapter_config.json").is_file() {
            return missing("it has adapter_config.json: it is an adapter, not a model");
        }
        if dir.join("run.json").is_file() {
            return missing("it has run.json: it is a training run, which gives an adapter, not a model");
        }
        if dir.join("snapshots").is_dir() {
            return missing("it is a cache of Hugging Face: the model is one of the folders in snapshots");
        }
        let files = gguf_models(dir)?;
        match &files[..] {
            [one] => Ok(ModelPlace::Gguf(one.clone())),
            // Who only reads its tokenizer does not need the configuration.
            [] => Ok(ModelPlace::Folder(dir.to_path_buf())),
            many => {
                let names: Vec<&str> = many.iter().filter_map(|p| p.file_name()?.to_str()).collect();
                let what = format!("holds {} GGUF models; give one of {}", many.len(), listed(&names));
                Err(Error::file(dir, what))
            }
        }
    }
}

/// The GGUF files of a folder; of a model in several parts, the first.
fn gguf_models(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(dir).map_err(|error| Error::file(dir, format!("cannot be read: {error}")))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "gguf"));
    files.sort();
    let stem = |path: &Path| PartName::parse(path).map(|part| part.stem);
    files.dedup_by(|next, first| stem(next).is_some_and(|s| Some(s) == stem(first)));
    Ok(files)
}
