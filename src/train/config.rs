//! The options of a run: their names and defaults, and how layers of settings are put over each other.

use super::schedule::{decay_share, restarts};
use super::{Decay, Schedule, TrainConfig};
use crate::adapter::{ALL_LINEAR, check_targets, named_path};
use crate::data::{Columns, OnBadImage};
use crate::mixture::{Method, MethodSpec};
use crate::model::Weights;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Component, Path, PathBuf};

/// Everything that a training run is told. A file of it (TOML or JSON) has these names, with the method's name in
/// `method` and its options in `options`.
#[derive(Debug, Clone, PartialEq)]
pub struct RunConfig {
    /// A `.gguf` file or a Hugging Face directory.
    pub model: PathBuf,
    /// The vision part of a model that has none of its own: a GGUF file (mmproj), or a directory with a tower alone, whose
    /// projector is a new one.
    pub vision: Option<PathBuf>,
    /// A data file, or a folder with train.jsonl.
    pub data: PathBuf,
    /// The method with its options.
    pub method: Method,
    /// Projections that get an adapter.
    pub target_modules: Vec<String>,
    /// Folders of trained LoRAs that are the experts of a method which mixes them, each as `DIR` or `NAME=DIR`.
    pub experts: Vec<String>,
    /// An adapter of the same method, or a run, whose values the run starts with.
    pub start_from: Option<PathBuf>,
    /// The task of samples that name none.
    pub task: Option<String>,
    /// Runs one after the other, each with data of its own.
    pub stages: Vec<Stage>,
    pub train: TrainOptions,
    pub text: TextOptions,
    pub device: DeviceOptions,
}

/// One stage of a stream of tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// A data file, or a folder with train.jsonl and, if you like, valid.jsonl.
    pub data: PathBuf,
    /// Optimizer steps; where it is not given those of the whole run's settings.
    #[serde(default)]
    pub steps: Option<usize>,
    /// The task of its samples that name none, and its name in tables.
    #[serde(default)]
    pub task: Option<String>,
    /// The mean loss below which a task of its data counts as solved: the stage ends early once it has solved its share.
    #[serde(default)]
    pub solved_below: Option<f64>,
    /// Steps before it may.
    #[serde(default)]
    pub least_steps: usize,
}

/// How long and how a run trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainOptions {
    /// Optimizer steps of the run; by default what `epochs` gives.
    pub steps: Option<usize>,
    /// Times that every example is seen.
    pub epochs: f64,
    /// Examples that go through the model together.
    pub micro_batch: usize,
    /// Micro-batches of one optimizer step.
    pub grad_accumulation: usize,
    pub learning_rate: f64,
    /// Learning rate of the projector of a model that sees, which is then trained whole; by default it stays as it is.
    pub projector_learning_rate: Option<f64>,
    /// Passes over the training examples in which a new projector learns alone, on its tower's features, before the first
    /// step; 0 for none.
    #[serde(default)]
    pub align_epochs: usize,
    /// Steps of linear warm-up; by default 3 % of the run.
    pub warmup_steps: Option<usize>,
    pub schedule: Decay,
    /// What every schedule but the constant one falls to by the end.
    #[serde(default)]
    pub min_learning_rate: f64,
    /// Share of the steps, at the end, in which the rate of `wsd` falls.
    #[serde(default = "decay_share")]
    pub decay_share: f64,
    /// Cycles of `cosine_restarts`.
    #[serde(default = "restarts")]
    pub restarts: usize,
    /// Gradients are clipped to this norm; 0 for never.
    pub max_grad_norm: f32,
    pub weight_decay: f64,
    pub seed: u64,
    /// Keep only the states between layers and compute the rest again in the backward pass.
    pub recompute: bool,
    /// Sort this many steps' examples by length before they are put together, so that less is padded; 0 for off.
    pub bucket_steps: usize,
    /// Share of the training samples that validate instead, where the data has none for that; above 0, below 1.
    #[serde(default)]
    pub valid_share: Option<f64>,
    /// Validation every so many steps; by default 5 % of the run. It runs at the end in any case.
    pub eval_every: Option<usize>,
    /// A checkpoint every so many steps; by default with each validation. One is written at the end in any case.
    pub save_every: Option<usize>,
    /// Stop after so many validations in a row without a better loss; by default never. It needs validation data.
    #[serde(default)]
    pub patience: Option<usize>,
    /// Validation samples that are answered at the end, for exact match; those with short answers alone. 0 for none.
    pub answers: usize,
    /// Checkpoints that are kept besides the best one.
    pub keep: usize,
    /// Steps whose loss or gradient is not finite that may be left out before the run stops.
    pub max_skipped: usize,
}

/// How samples become tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextOptions {
    /// A tokenizer.json, instead of the model's.
    pub tokenizer: Option<PathBuf>,
    /// A built-in chat template (chatml) or a Jinja file, instead of the model's.
    pub template: Option<String>,
    /// Longest example, in tokens.
    pub max_length: usize,
    /// Train every token, not only the assistant's.
    pub loss_on_all: bool,
    /// Accept assistant turns without an end token.
    pub allow_untrained_eos: bool,
    /// Share of samples that may be left out for having no trained token, 0 to 1.
    pub max_untrained: f64,
    /// Keys or columns of the data that stand for others, each as `question=prompt`.
    #[serde(default)]
    pub columns: Vec<String>,
    /// The folder that relative paths of pictures are of; by default that of the data file.
    #[serde(default)]
    pub image_folder: Option<PathBuf>,
    /// What becomes of samples with a picture that cannot be read: error, or skip to leave them out.
    #[serde(default)]
    pub on_bad_image: OnBadImage,
    /// Bytes of features of pictures that stay in memory, as 8GiB or 600MiB; more go to files.
    #[serde(default = "feature_memory")]
    pub feature_memory: String,
    /// A folder where features of pictures are kept for other runs; by default only what is above `feature_memory` is
    /// written, into the user's cache folder.
    #[serde(default)]
    pub feature_cache: Option<PathBuf>,
}

/// The memory for features where nothing else is said.
fn feature_memory() -> String {
    "8GiB".into()
}

/// Where a run computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceOptions {
    /// auto (the best GPU, else the CPU), cpu, gpu, or part of an adapter's name.
    pub name: String,
    /// Threads of the CPU device; by default one per core. Results do not depend on it.
    pub threads: Option<usize>,
    /// Bytes that the device may hold, as 4GiB or 600MiB; by default no limit.
    pub memory_budget: Option<String>,
    /// The format of the model's matrices in memory: auto, that of the file, or one that they are quantised or dequantised to.
    pub weights: Weights,
}

impl RunConfig {
    /// The defaults of a method, with the settings of a run that its authors used; without a model and data.
    ///
    /// # Errors
    /// The method's settings are none of a run.
    pub fn defaults(method: &'static MethodSpec) -> Result<Self> {
        let plain = RunConfig {
            model: PathBuf::new(),
            vision: None,
            data: PathBuf::new(),
            method: method.defaults(),
            target_modules: vec![ALL_LINEAR.into()],
            experts: Vec::new(),
            start_from: None,
            task: None,
            stages: Vec::new(),
            train: TrainOptions::default(),
            text: TextOptions::default(),
            device: DeviceOptions::default(),
        };
        plain.with_settings(method.run)
    }

    /// The same with paths that do not depend on the folder where the program runs, to be kept for later.
    pub fn anchored(&self) -> Self {
        let mut config = self.clone();
        let text = &mut config.text;
        let text = [text.tokenizer.as_mut(), text.image_folder.as_mut(), text.feature_cache.as_mut()];
        let own = [Some(&mut config.model), Some(&mut config.data)].into_iter().chain(text);
        let of_stages = config.stages.iter_mut().map(|stage| Some(&mut stage.data));
        let beside = [config.vision.as_mut(), config.start_from.as_mut()];
        for path in own.chain(beside).chain(of_stages) {
            let Some(path) = path.filter(|p| !p.as_os_str().is_empty()) else { continue };
            *path = anchored(path);
        }
        for expert in &mut config.experts {
            let (name, dir) = named_path(expert);
            *expert = format!("{name}={}", anchored(dir).display());
        }
        // The built-in template is named before a file is looked for.
        let file = |t: &&mut String| *t != "chatml" && Path::new(t).is_file();
        if let Some(template) = config.text.template.as_mut().filter(file) {
            *template = anchored(Path::new(template)).to_string_lossy().into_owned();
        }
        config
    }

    /// Refuses values that cannot work, whatever the model and the data are.
    pub fn check(&self) -> Result<()> {
        if let Some(i) = self.stages.iter().position(|s| s.steps == Some(0) || s.data.as_os_str().is_empty())
        {
            let what = format!("the one with number {} has no data, or 0 steps", i + 1);
            return Err(Error::refused("stages", what));
        }
        check_targets(&self.target_modules)?;
        self.train.check().map_err(|error| within("train", error))?;
        if !(0.0..=1.0).contains(&self.text.max_untrained) {
            return Err(Error::config("text.max_untrained", self.text.max_untrained, "in 0..=1"));
        }
        self.text.feature_bytes().map_err(|error| within("text", error))?;
        Columns::new(&self.text.columns).map_err(|error| within("text", error))?;
        let threads = self.device.threads.map_or(Ok(()), crate::Device::check_threads);
        threads.map_err(|error| within("device", error))?;
        self.device.budget().map(|_| ())
    }
}

/// A path that means the same from every folder. One that no text can hold stays as it is.
fn anchored(path: &Path) -> PathBuf {
    // Links stay as they are named, unless a folder between them and `..` may go away.
    let climbs = path.components().any(|c| c == Component::ParentDir);
    let whole = if climbs { path.canonicalize() } else { std::path::absolute(path) };
    whole.ok().filter(|p| p.to_str().is_some()).unwrap_or_else(|| path.into())
}

/// Names a field by its section.
pub(super) fn within(section: &str, e: Error) -> Error {
    e.rename(|field| format!("{section}.{field}"))
}

impl Default for TrainOptions {
    fn default() -> Self {
        TrainOptions {
            steps: None,
            epochs: 3.0,
            micro_batch: 4,
            grad_accumulation: 1,
            learning_rate: 1e-3,
            projector_learning_rate: None,
            align_epochs: 0,
            warmup_steps: None,
            schedule: Decay::Cosine,
            min_learning_rate: 0.0,
            decay_share: decay_share(),
            restarts: restarts(),
            max_grad_norm: 1.0,
            weight_decay: 0.0,
            seed: 0,
            recompute: false,
            bucket_steps: 0,
            valid_share: None,
            eval_every: None,
            save_every: None,
            patience: None,
            answers: 100,
            keep: 2,
            max_skipped: 0,
        }
    }
}

impl TrainOptions {
    fn check(&self) -> Result<()> {
        let at_least_one = [
            ("steps", self.steps),
            ("micro_batch", Some(self.micro_batch)),
            ("grad_accumulation", Some(self.grad_accumulation)),
            ("eval_every", self.eval_every),
            ("save_every", self.save_every),
            ("patience", self.patience),
            ("keep", Some(self.keep)),
        ];
        if let Some((field, _)) = at_least_one.iter().find(|(_, v)| *v == Some(0)) {
            return Err(Error::config(*field, 0, "at least 1"));
        }
        if let Some(share) = self.valid_share.filter(|share| !(*share > 0.0 && *share < 1.0)) {
            return Err(Error::config("valid_share", share, "above 0 and below 1"));
        }
        if !(self.epochs > 0.0 && self.epochs.is_finite()) {
            return Err(Error::config("epochs", self.epochs, "a positive number"));
        }
        for (field, v) in [("max_grad_norm", self.max_grad_norm as f64), ("weight_decay", self.weight_decay)]
        {
            if !(v >= 0.0 && v.is_finite()) {
                return Err(Error::config(field, v, "a number of at least 0"));
            }
        }
        let projector = self.projector_learning_rate.map(|rate| ("projector_learning_rate", rate));
        let rates = std::iter::once(("learning_rate", self.learning_rate)).chain(projector);
        if let Some((field, rate)) = rates.into_iter().find(|(_, rate)| !(rate.is_finite() && *rate > 0.0)) {
            return Err(Error::config(field, rate, "a positive number"));
        }
        match self.steps {
            Some(steps) => self.schedule(steps).check(steps),
            None => self.schedule(0).check_rates(),
        }
    }

    /// Refuses patience where there is nothing to validate on.
    ///
    /// # Errors
    /// Patience is set and there is no validation data.
    pub fn check_patience(&self, has_validation: bool) -> Result<()> {
        if self.patience.is_none() || has_validation {
            return Ok(());
        }
        let what = "needs validation data, of which there is none: put a valid.jsonl beside train.jsonl and give the folder \
                    as data, or set train.valid_share (--valid-share 0.05), or leave patience out";
        Err(Error::refused("train.patience", what))
    }

    /// Optimizer steps of a run whose epochs have so many.
    pub fn total_steps(&self, per_epoch: usize) -> usize {
        self.steps.unwrap_or_else(|| ((self.epochs * per_epoch as f64).round() as usize).max(1))
    }

    /// What the learning rate is multiplied by for the projector, where that is trained.
    pub fn projector_rate(&self) -> Option<f64> {
        self.projector_learning_rate.map(|rate| rate / self.learning_rate)
    }

    /// The learning rates of a run of `steps`.
    fn schedule(&self, steps: usize) -> Schedule {
        Schedule {
            learning_rate: self.learning_rate,
            warmup_steps: self.warmup_steps.unwrap_or((steps as f64 * 0.03).ceil() as usize),
            decay: self.schedule,
            min_learning_rate: self.min_learning_rate,
            decay_share: self.decay_share,
            restarts: self.restarts,
        }
    }

    /// What a session is told, for a run of `steps`.
    pub fn session(&self, steps: usize) -> TrainConfig {
        TrainConfig {
            schedule: self.schedule(steps),
            steps,
            max_grad_norm: (self.max_grad_norm > 0.0).then_some(self.max_grad_norm),
            weight_decay: self.weight_decay,
            seed: self.seed,
            recompute: self.recompute,
        }
    }
}

impl Default for TextOptions {
    fn default() -> Self {
        TextOptions {
            tokenizer: None,
            template: None,
            max_length: 1024,
            loss_on_all: false,
            allow_untrained_eos: false,
            max_untrained: 0.05,
            columns: Vec::new(),
            image_folder: None,
            on_bad_image: OnBadImage::Error,
            feature_memory: feature_memory(),
            feature_cache: None,
        }
    }
}

impl TextOptions {
    /// The memory for features in bytes.
    ///
    /// # Errors
    /// It is not a number with a unit.
    pub fn feature_bytes(&self) -> Result<u64> {
        parse_bytes(&self.feature_memory).map_err(|error| error.rename(|_| "feature_memory".into()))
    }
}

impl Default for DeviceOptions {
    fn default() -> Self {
        DeviceOptions { name: "auto".into(), threads: None, memory_budget: None, weights: Weights::Auto }
    }
}

impl DeviceOptions {
    /// The budget in bytes.
    ///
    /// # Errors
    /// It is not a number with a unit.
    pub fn budget(&self) -> Result<Option<u64>> {
        self.memory_budget.as_deref().map(parse_bytes).transpose()
    }

    /// Opens the device, with its threads and budget. A GPU keeps its compiled kernels in the user's cache.
    ///
    /// # Errors
    /// There is no such device; `name` says so where it is no name of one.
    pub fn open(&self) -> Result<crate::Device> {
        let cache = crate::io::cache::folder(None).ok();
        let mut device = crate::Device::parse_with_cache(&self.name, cache.as_deref())?;
        if let (crate::Device::Cpu(_), Some(threads)) = (&device, self.threads) {
            device = crate::Device::cpu_with_threads(threads)?;
        }
        if let (Some(bytes), Some(memory)) = (self.budget()?, device.memory()) {
            memory.set_budget(bytes);
        }
        Ok(device)
    }
}

/// Bytes from text such as `4GiB`, `600MiB` or `1.5GiB`.
///
/// # Errors
/// The text is something else; the error gives an example.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let found = units.iter().find_map(|(unit, bits)| Some((text.trim().strip_suffix(unit)?, 1u64 << bits)));
    let value = found.and_then(|(n, unit)| Some(n.trim().parse::<f64>().ok()? * unit as f64));
    match value.filter(|v| *v >= 1.0 && *v < (1u64 << 60) as f64) {
        Some(v) => Ok(v as u64),
        None => Err(Error::config("memory_budget", format!("'{text}'"), "a size such as 4GiB or 600MiB")),
    }
}
