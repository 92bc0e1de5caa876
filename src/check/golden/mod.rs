//! Reference files replayed: one layer, forward and backward, against values from an independent implementation
//! in PyTorch (f64). What the files hold is described in tests/golden/README.md.

mod layer;
mod model;
mod token;
#[cfg(feature = "tokenizer")]
mod tokens;

use super::Deviation;
use crate::io::Checkpoint;
use crate::model::Model;
use crate::nn::Param;
use crate::{Device, Error, Gradients, Result, Tensor};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bound on the error of a tensor relative to its largest value. PyTorch in f32 reaches 2.3e-6.
pub const BOUND: f64 = 1e-5;

/// One comparison.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The tensor, or what was compared.
    pub name: String,
    pub error: f64,
    pub bound: f64,
}

impl Measured {
    /// Within the bound, and a number.
    pub fn holds(&self) -> bool {
        self.error <= self.bound
    }
}

/// What one file gave on one device.
#[derive(Debug, Clone)]
pub struct Replay {
    pub path: PathBuf,
    /// `layer` or the token layer's name.
    pub kind: String,
    /// Layers: worst error of every compared tensor, relative to max(its largest value, floor). Models: as the
    /// name says.
    pub errors: Vec<Measured>,
    /// Whether all choices agree.
    pub choices: bool,
}

impl Replay {
    /// The comparison that is nearest to its bound, or furthest beyond.
    pub fn worst(&self) -> Option<&Measured> {
        let share = |m: &Measured| m.error / m.bound.max(f64::MIN_POSITIVE);
        self.errors.iter().max_by(|a, b| share(a).total_cmp(&share(b)))
    }
    /// True when every comparison is within its bound and all choices agree.
    pub fn holds(&self) -> bool {
        self.choices && self.errors.iter().all(Measured::holds)
    }
}

/// Reference files below the given paths, in order; a path to a file is taken as it is. Each folder is looked at once,
/// however many links lead to it.
///
/// # Errors
/// A path does not exist, or no file is found.
pub fn find_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    fn walk(dir: &Path, seen: &mut BTreeSet<PathBuf>, out: &mut Vec<PathBuf>) -> Result<()> {
        let fail = |e: std::io::Error| Error::file(dir, format!("cannot be read: {e}"));
        if !seen.insert(dir.canonicalize().map_err(fail)?) {
            return Ok(());
        }
        let read = std::fs::read_dir(dir).map_err(fail)?;
        let mut entries: Vec<PathBuf> = read.filter_map(|e| Some(e.ok()?.path())).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, seen, out)?;
            } else if path.extension().is_some_and(|e| e == "safetensors" || e == "jsonl")
                || model::is_greedy(&path)
            {
                out.push(path);
            }
        }
        Ok(())
    }
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    for path in paths {
        match std::fs::metadata(path) {
            Ok(m) if m.is_dir() => walk(path, &mut seen, &mut files)?,
            Ok(_) => files.push(path.clone()),
            Err(e) => return Err(Error::file(path, e.to_string())),
        }
    }
    match files.is_empty() {
        true => Err(Error::config(
            "paths",
            "no reference file found: neither .safetensors nor texts in .json or .jsonl",
        )),
        false => Ok(files),
    }
}

/// Replays a reference file on a device.
///
/// # Errors
/// The file is malformed: the error names the file and what is wrong with it.
pub fn replay(path: &Path, device: &Device) -> Result<Replay> {
    let file = Checkpoint::open(path)?;
    let config: serde_json::Value = config(&file)?;
    let has = |key: &str| config.get(key).is_some();
    match has("layer") {
        true => token::replay(&file, device),
        false if has("in") && has("out") => layer::replay(&file, device),
        false => Err(Error::file(path, "config is neither of kind 'layer' (in, out) nor 'token' (layer)")),
    }
}

/// Whether a file is of a kind that needs a model: tokens, logits, greedy text, training.
pub fn needs_model(path: &Path) -> Result<bool> {
    if path.extension().is_some_and(|e| e == "json" || e == "jsonl") {
        return Ok(true);
    }
    let file = Checkpoint::open(path)?;
    Ok(model::is_logits(&file) || model::is_training(&file))
}

/// Replays a file of strings and chats with a model's tokenizer and template.
///
/// # Errors
/// The file is malformed; the error names the line.
#[cfg(feature = "tokenizer")]
pub fn replay_tokens(path: &Path, model: &crate::text::ModelText) -> Result<Replay> {
    tokens::replay(path, model)
}

/// Replays a file of a whole-model kind. `open` gives the model in f32, without adapters.
///
/// # Errors
/// The file is malformed or made with another model, or the model cannot be opened.
pub fn replay_model(path: &Path, open: &dyn Fn() -> Result<Arc<Model>>) -> Result<Replay> {
    if path.extension().is_some_and(|e| e == "json") {
        return model::replay_greedy(path, &open()?);
    }
    let file = Checkpoint::open(path)?;
    match (model::is_logits(&file), model::is_training(&file)) {
        (true, _) => model::replay_logits(&file, &*open()?),
        (_, true) => model::replay_training(&file, open),
        _ => Err(Error::file(path, "is of no kind that needs a model: no 'full_logits', no training config")),
    }
}

fn config<T: DeserializeOwned>(file: &Checkpoint) -> Result<T> {
    let text = file.metadata("config")?;
    serde_json::from_str(text).map_err(|e| Error::file(file.path(), format!("metadata 'config': {e}")))
}

/// Compares the tensors of a file with what was computed.
struct Compare<'a> {
    file: &'a Checkpoint,
    errors: Vec<Measured>,
}

impl<'a> Compare<'a> {
    fn new(file: &'a Checkpoint) -> Self {
        Compare { file, errors: Vec::new() }
    }
    /// A gradient has the shape of its tensor; `dims` is the shape of anything else.
    fn add(&mut self, name: &str, dims: &[usize], got: &[f64], floor: f64) -> Result<()> {
        let dims = match name.strip_prefix("grad_") {
            Some(of) => self.file.dims(of)?.to_vec(),
            None => dims.to_vec(),
        };
        let want: Vec<f64> = self.file.f32(name, &dims)?.iter().map(|&v| v as f64).collect();
        // Exact zeros on both sides are no error; without a floor any other value against zeros is.
        let error = Deviation::of(got, &want, floor.max(f64::MIN_POSITIVE)).max;
        self.errors.push(Measured { name: name.to_string(), error, bound: BOUND });
        Ok(())
    }
    /// Compares every gradient of the parameters that the file has, by part name.
    fn gradients(
        &mut self,
        params: &[Param],
        gradients: &Gradients,
        stored: impl Fn(&str, Vec<f64>) -> Vec<(String, Vec<f64>)>,
        floor: impl Fn(&str) -> f64,
    ) -> Result<()> {
        for p in params {
            let Some(g) = p.gradient(gradients) else { continue };
            for (part, _, values) in p.split(g)? {
                for (name, values) in stored(&part, values) {
                    self.add(&format!("grad_{name}"), &[], &values, floor(&name))?;
                }
            }
        }
        Ok(())
    }
    /// Every gradient of the file must have been compared.
    fn finish(self, kind: &str, choices: bool) -> Result<Replay> {
        for name in self.file.names().filter(|n| n.starts_with("grad_") && *n != "grad_y") {
            if !self.errors.iter().any(|m| m.name == name) {
                return Err(Error::file(
                    self.file.path(),
                    format!("'{name}' was not computed: no such gradient"),
                ));
            }
        }
        Ok(Replay {
            path: self.file.path().to_path_buf(),
            kind: kind.to_string(),
            errors: self.errors,
            choices,
        })
    }
}

/// Checks type and shape of tensors that must be there. Done before anything is built: sizes that a configuration
/// only claims never reach an allocation.
fn expect(file: &Checkpoint, tensors: &[(&str, Vec<usize>)]) -> Result<()> {
    tensors.iter().try_for_each(|(name, dims)| file.f32(name, dims).map(|_| ()))
}

/// Values that a replay may make in one tensor besides as many as its file has: 64 MiB of f32.
const MADE_VALUES: usize = 16 << 20;

/// Refuses sizes whose product is a tensor that neither stands in the file nor is in proportion to it.
fn bounded(file: &Checkpoint, what: &str, dims: &[usize]) -> Result<()> {
    let made = dims.iter().fold(1usize, |n, &d| n.saturating_mul(d));
    let stored: usize = file.names().filter_map(|name| Some(file.tensor_bytes(name).ok()?.len() / 4)).sum();
    if made <= stored + MADE_VALUES {
        return Ok(());
    }
    let what = format!("config asks for {what} of {dims:?} values, but the file has {stored} values in all");
    Err(Error::file(file.path(), what))
}

fn tensor(file: &Checkpoint, device: &Device, name: &str, dims: &[usize]) -> Result<Tensor> {
    Tensor::from_f32(device, dims, &file.f32(name, dims)?)
}
