//! Replay of reference files: one layer, forward and backward, compared with an independent implementation in PyTorch
//! (f64). tests/golden/README.md describes the files.

mod beside;
mod family;
mod kinds;
mod layer;
mod losses;
mod mixture;
mod model;
mod remix;
mod token;
#[cfg(feature = "tokenizer")]
mod tokens;
mod trained;
mod uni_moe;
mod vision;
mod xlora;

use super::Deviation;
use crate::io::{Checkpoint, cannot_read};
use crate::model::Model;
use crate::nn::Param;
use crate::{Device, Error, Gradients, Result, Tensor};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The bound on the error of a tensor relative to its largest value. PyTorch in f32 reaches 2.3e-6.
pub const BOUND: f64 = 1e-5;

/// One comparison.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The name of the tensor or figure.
    pub name: String,
    pub error: f64,
    pub bound: f64,
}

impl Measured {
    /// Tests whether the error is a number within the bound.
    pub fn holds(&self) -> bool {
        self.error <= self.bound
    }
}

/// The result of one file on one device.
#[derive(Debug, Clone)]
pub struct Replay {
    pub path: PathBuf,
    /// `layer` or the token layer's name.
    pub kind: String,
    /// For layers, the worst error of every compared tensor, relative to max(its largest value, floor). For models, the
    /// name describes the figure.
    pub errors: Vec<Measured>,
    /// Whether all choices agree.
    pub choices: bool,
}

impl Replay {
    /// The comparison with the largest error relative to its bound.
    pub fn worst(&self) -> Option<&Measured> {
        let share = |measured: &Measured| measured.error / measured.bound.max(f64::MIN_POSITIVE);
        self.errors.iter().max_by(|one, other| share(one).total_cmp(&share(other)))
    }
    /// Tests whether every comparison is within its bound and all choices agree.
    pub fn holds(&self) -> bool {
        self.choices && self.errors.iter().all(Measured::holds)
    }
}

/// Finds reference files below the given paths, in order; a path to a file is returned unchanged. Each folder is visited
/// once, however many links lead to it.
///
/// # Errors
/// A path does not exist, or no file is found.
pub fn find_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    fn walk(dir: &Path, seen: &mut BTreeSet<PathBuf>, out: &mut Vec<PathBuf>) -> Result<()> {
        let failure = cannot_read(dir);
        if !seen.insert(dir.canonicalize().map_err(&failure)?) {
            return Ok(());
        }
        if let Some(expected) = vision::model(dir) {
            out.push(expected);
            return Ok(());
        }
        let reference = dir.join("reference.safetensors");
        if family::is_family(&reference) {
            out.push(reference);
            return Ok(());
        }
        let read = std::fs::read_dir(dir).map_err(&failure)?;
        let mut entries: Vec<PathBuf> = read.filter_map(|entry| Some(entry.ok()?.path())).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, seen, out)?;
            } else if path.extension().is_some_and(|found| found == "safetensors" || found == "jsonl")
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
            Ok(about) if about.is_dir() => walk(path, &mut seen, &mut files)?,
            Ok(_) => files.push(path.clone()),
            Err(error) => return Err(Error::file(path, error.to_string())),
        }
    }
    if files.is_empty() {
        let what = "no reference file found: neither .safetensors nor texts in .json or .jsonl";
        return Err(Error::refused("paths", what));
    }
    Ok(files)
}

/// Replays a reference file on a device.
///
/// # Errors
/// The file is malformed: the error names the file and what is wrong with it.
pub fn replay(path: &Path, device: &Device) -> Result<Replay> {
    let file = Checkpoint::open(path)?;
    if family::is_family(path) {
        return family::replay(&file, device);
    }
    if let Some(kind) = vision::kind(&file) {
        return vision::replay(&file, kind, device);
    }
    let config: serde_json::Value = config(&file)?;
    if let (Some(kind), Some(values)) =
        (config.get("kind").and_then(|kind| kind.as_str()), config.as_object())
    {
        return match kind {
            kind if kinds::LAYERS.contains(&kind) => mixture::replay(&file, kind, values, device),
            uni_moe::KIND => uni_moe::replay(&file, values, device),
            kind if losses::KINDS.contains(&kind) => losses::replay(&file, kind, values, device),
            kinds::REMIX => remix::replay(&file, kinds::REMIX, values, device),
            xlora::KIND => xlora::replay(&file, xlora::KIND, values, device),
            kind => Err(Error::file(path, format!("kind '{kind}' is not known to this version"))),
        };
    }
    let contains = |key: &str| config.get(key).is_some();
    if contains("layer") {
        return token::replay(&file, device);
    }
    if contains("in") && contains("out") {
        return layer::replay(&file, device);
    }
    Err(Error::file(path, "config is neither of kind 'layer' (in, out) nor 'token' (layer)"))
}

/// The kind that a file of the method family or of the vision set names.
///
/// # Errors
/// The file is malformed.
pub fn named_kind(path: &Path) -> Result<Option<String>> {
    if path.extension().is_none_or(|found| found != "safetensors") {
        return Ok(None);
    }
    let file = Checkpoint::open(path)?;
    if let Some(kind) = vision::kind(&file) {
        return Ok(Some(kind.into()));
    }
    if family::is_family(path) || file.metadata("config").is_err() {
        return Ok(None);
    }
    let config: serde_json::Value = config(&file)?;
    Ok(config.get("kind").and_then(|kind| kind.as_str()).map(String::from))
}

/// Tests whether files of that kind can be replayed.
pub fn is_known_kind(kind: &str) -> bool {
    vision::is_known(kind)
        || kinds::LAYERS.contains(&kind)
        || losses::KINDS.contains(&kind)
        || [kinds::REMIX, uni_moe::KIND, xlora::KIND].contains(&kind)
}

/// Tests whether a file is of a kind that needs a model: tokens, logits, greedy text, training.
///
/// # Errors
/// The file is malformed.
pub fn needs_model(path: &Path) -> Result<bool> {
    if path.extension().is_some_and(|found| found == "json" || found == "jsonl") {
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

/// Replays a file of a whole-model kind. `open` returns the model in f32, without adapters.
///
/// # Errors
/// The file is malformed or made with another model, or the model cannot be opened.
pub fn replay_model(path: &Path, open: &dyn Fn() -> Result<Arc<Model>>) -> Result<Replay> {
    if path.extension().is_some_and(|found| found == "json") {
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
    serde_json::from_str(text)
        .map_err(|error| Error::file(file.path(), format!("metadata 'config': {error}")))
}

/// Comparisons of the tensors of a file with computed ones.
struct Compare<'a> {
    file: &'a Checkpoint,
    errors: Vec<Measured>,
}

impl<'a> Compare<'a> {
    fn new(file: &'a Checkpoint) -> Self {
        Compare { file, errors: Vec::new() }
    }
    /// Compares a tensor. A gradient has the shape of its tensor; `dims` is the shape of any other one.
    fn add(&mut self, name: &str, dims: &[usize], got: &[f64], floor: f64) -> Result<()> {
        let dims = match name.strip_prefix("grad_") {
            Some(tensor) => self.file.dims(tensor)?.to_vec(),
            None => dims.to_vec(),
        };
        let want = self.file.f32(name, &dims)?;
        self.measure(name, &want, got, floor, BOUND);
        Ok(())
    }
    /// Compares a tensor of any shape within a bound of its own.
    fn within(&mut self, name: &str, got: &[f64], bound: f64) -> Result<()> {
        let want = self.file.values_f32(name)?;
        self.measure(name, &want, got, 0.0, bound);
        Ok(())
    }
    fn measure(&mut self, name: &str, want: &[f32], got: &[f64], floor: f64, bound: f64) {
        let want: Vec<f64> = want.iter().map(|&value| value as f64).collect();
        // Without a floor, zeros must be matched exactly.
        let error = Deviation::of(got, &want, floor.max(f64::MIN_POSITIVE)).max;
        self.errors.push(Measured { name: name.to_string(), error, bound });
    }
    /// Compares the gradients of all parameters by the names of their parts.
    fn gradients(
        &mut self,
        params: &[Param],
        gradients: &Gradients,
        stored: impl Fn(&str, Vec<f64>) -> Vec<(String, Vec<f64>)>,
        floor: impl Fn(&str) -> f64,
    ) -> Result<()> {
        for param in params {
            let Some(gradient) = param.gradient(gradients) else { continue };
            for (part, _, values) in param.split(gradient)? {
                for (name, values) in stored(&part, values) {
                    self.add(&format!("grad_{name}"), &[], &values, floor(&name))?;
                }
            }
        }
        Ok(())
    }
    /// Checks that every gradient and every loss of the file has been compared.
    fn finish(self, kind: &str, choices: bool) -> Result<Replay> {
        // Cotangents are inputs.
        let result = |name: &&str| {
            let gradient = name.starts_with("grad_") || name.contains(".grad_");
            (gradient && *name != "grad_y" && !name.starts_with("grad_y.")) || name.ends_with(".value")
        };
        for name in self.file.names().filter(result) {
            if !self.errors.iter().any(|measured| measured.name == name) {
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

/// Checks type and shape of required tensors before anything is allocated, so that false sizes in a configuration do not
/// reach an allocation.
fn expect(file: &Checkpoint, tensors: &[(&str, Vec<usize>)]) -> Result<()> {
    tensors.iter().try_for_each(|(name, dims)| file.f32(name, dims).map(|_| ()))
}

/// The largest number of values of a computed tensor beyond those in the file: 64 MiB of f32.
const COMPUTED_VALUES: usize = 16 << 20;

/// Refuses a computed tensor that is out of proportion to the file.
fn bounded(file: &Checkpoint, what: &str, dims: &[usize]) -> Result<()> {
    let made = dims.iter().fold(1usize, |product, &length| product.saturating_mul(length));
    let stored: usize = file.names().filter_map(|name| Some(file.tensor_bytes(name).ok()?.len() / 4)).sum();
    if made <= stored + COMPUTED_VALUES {
        return Ok(());
    }
    let what = format!("config asks for {what} of {dims:?} values, but the file has {stored} values in all");
    Err(Error::file(file.path(), what))
}

fn tensor(file: &Checkpoint, device: &Device, name: &str, dims: &[usize]) -> Result<Tensor> {
    Tensor::from_f32(device, dims, &file.f32(name, dims)?)
}
