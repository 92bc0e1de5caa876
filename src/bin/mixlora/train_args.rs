//! Options of a training run, which `train` and `plan` share.

use crate::Failure;
use crate::data_text::FeatureArgs;
use crate::device_args::WeightsArgs;
use crate::model_path::model_path;
use crate::settings::{Layers, method, option_layers, read_file, set_layers};
use mixlora::mixture::Methods;
use mixlora::train::{Decay, RunConfig};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(after_help = "\
Settings come from the method's defaults, then --config, then the options here, then --set; `mixlora config init` \
prints all of them with their defaults.

The run's folder gets metrics.jsonl (a line a step), loss.svg, and checkpoints: step-000120/ holds the adapter with \
all that is needed to go on; `last` and `best` name one. Ctrl-C finishes the step, saves and exits with 130; a second \
one stops at once. Go on with --resume RUN.

Example: mixlora train --model SmolLM2-135M-Instruct.Q4_1.gguf --data my_data --epochs 2 --out run
A stream of tasks: [[stages]] in the file of settings, each with data and, if you like, steps and task, are runs one after \
the other in OUT/stage-1, OUT/stage-2 and so on, each from where the one before ended; after each the loss on the data of \
all stages is shown.

Example: mixlora train --resume run --set train.learning_rate=5e-4

With --patience N a run ends early when N validations in a row had no better loss. Such a run goes on with a higher number, \
or without one: --resume RUN --set train.patience=null.

Example: mixlora train --model base.gguf --data my_data --epochs 20 --eval-every 50 --patience 3 --out run")]
pub struct TrainArgs {
    /// A .gguf file, or a Hugging Face directory.
    #[arg(long, value_parser = model_path())]
    model: Option<PathBuf>,
    /// Take weights that hold NaN or infinite values as they are.
    #[arg(long)]
    pub allow_nonfinite: bool,
    /// A file (.jsonl, .json, .csv, .tsv, .txt, each also .gz), or a folder with train.jsonl and, if you like,
    /// valid.jsonl.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder of the run; it must not hold another one.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Go on with the run in this folder.
    #[arg(long, value_name = "RUN", conflicts_with = "out")]
    pub resume: Option<PathBuf>,
    /// A TOML or JSON file of settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A setting, for example r=8, num_factors=32 or train.keep=5; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// See `mixlora methods`.
    #[arg(long)]
    method: Option<String>,
    /// Projections that get an adapter, separated by commas.
    #[arg(long, value_delimiter = ',')]
    targets: Option<Vec<String>>,
    /// Folders of trained LoRAs (ours or PEFT's) that are the experts of x-lora, meteora or lora-mixer: DIR or NAME=DIR.
    #[arg(long, num_args = 1.., value_name = "DIR")]
    experts: Option<Vec<String>>,
    /// An adapter of the same method, or a run, whose values the run starts with.
    #[arg(long, value_name = "DIR")]
    start_from: Option<PathBuf>,
    /// The task of samples that name none.
    #[arg(long)]
    task: Option<String>,
    /// Optimizer steps.
    #[arg(long)]
    steps: Option<usize>,
    /// Times that every example is seen, where --steps is not given.
    #[arg(long)]
    epochs: Option<f64>,
    /// Samples that go through the model together.
    #[arg(long, alias = "batch-size")]
    micro_batch: Option<usize>,
    /// Micro-batches of one optimizer step.
    #[arg(long)]
    grad_accumulation: Option<usize>,
    #[arg(long, alias = "lr")]
    learning_rate: Option<f64>,
    /// Train the projector of a model that sees, whole, with this learning rate; it follows the same schedule, and is kept
    /// with the adapter.
    #[arg(long, value_name = "RATE", visible_alias = "projector-lr", alias = "mm-projector-lr")]
    projector_learning_rate: Option<f64>,
    /// Steps of linear warm-up.
    #[arg(long)]
    warmup_steps: Option<usize>,
    /// How the learning rate goes after the warm-up.
    #[arg(long, value_parser = Decay::WORDS)]
    schedule: Option<String>,
    /// What every schedule but the constant one falls to by the end.
    #[arg(long, alias = "min-lr", value_name = "RATE")]
    min_learning_rate: Option<f64>,
    /// Gradients are clipped to this norm; 0 for never.
    #[arg(long)]
    max_grad_norm: Option<f32>,
    #[arg(long)]
    weight_decay: Option<f64>,
    #[arg(long)]
    seed: Option<u64>,
    /// Validation every so many steps.
    #[arg(long)]
    eval_every: Option<usize>,
    /// A checkpoint every so many steps.
    #[arg(long)]
    save_every: Option<usize>,
    /// Stop after so many validations in a row without a better loss; the best checkpoint is kept in any case.
    #[arg(long, value_name = "N")]
    patience: Option<usize>,
    /// Gradient checkpointing: less memory, a third more time.
    #[arg(long)]
    recompute: bool,
    /// Longest example, in tokens.
    #[arg(long, alias = "max-seq-length")]
    max_length: Option<usize>,
    /// The vision part of a model that has none of its own: a GGUF file (mmproj), or a directory with a vision tower alone.
    #[arg(long, visible_alias = "mmproj", value_name = "PATH")]
    vision: Option<PathBuf>,
    /// Passes over the training examples in which a new projector learns alone, before the first step.
    #[arg(long, value_name = "N")]
    align_epochs: Option<usize>,
    /// Keys or columns of the data that stand for others, as question=prompt,answer=completion.
    #[arg(long, value_name = "NAME=KEY", value_delimiter = ',')]
    columns: Vec<String>,
    /// Share of the training samples that validate instead, where the data has none for that: 0.05 for one in twenty.
    #[arg(long, value_name = "SHARE")]
    valid_share: Option<f64>,
    /// Folder that relative paths of pictures are of; by default that of the data file.
    #[arg(long, value_name = "DIR")]
    image_folder: Option<PathBuf>,
    /// What becomes of samples with a picture that cannot be read: error, or skip to leave them out and count them.
    #[arg(long, value_name = "WHAT", value_parser = ["error", "skip"])]
    on_bad_image: Option<String>,
    #[command(flatten)]
    features: FeatureArgs,
    /// A built-in template (chatml) or a Jinja file, instead of the model's.
    #[arg(long)]
    template: Option<String>,
    /// Train every token, not only the assistant's.
    #[arg(long)]
    loss_on_all: bool,
    /// Accept assistant turns without an end token.
    #[arg(long)]
    allow_untrained_eos: bool,
    /// auto (the best GPU, else the CPU), cpu, gpu, or part of an adapter's name.
    #[arg(long)]
    device: Option<String>,
    /// Threads of the CPU device.
    #[arg(long)]
    threads: Option<usize>,
    /// Bytes that the device may hold, for example 6GiB; what would not fit is refused before it is loaded.
    #[arg(long, value_name = "SIZE")]
    memory_budget: Option<String>,
    #[command(flatten)]
    weights: WeightsArgs,
    /// Take the gentlest settings that fit into what the device has free, or into this many bytes: formats of the weights, parts
    /// of a micro-batch, layers computed again. The batch of a step and the length of examples stay.
    #[arg(long, value_name = "SIZE", num_args = 0..=1, conflicts_with = "memory_budget")]
    pub fit: Option<Option<String>>,
    /// Stop after this step with a checkpoint; schedule and length of the run stay as they are.
    #[arg(long, value_name = "STEP")]
    pub stop_at: Option<usize>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
    /// Print no progress.
    #[arg(long)]
    pub quiet: bool,
}

impl TrainArgs {
    /// The settings given here, over those that a resumed run was started with.
    pub fn layers(&self, stored: Option<&RunConfig>) -> Result<Layers, Failure> {
        let mut layers = Layers::new();
        if let Some(config) = stored {
            layers.push(("run.json".into(), config.tree()?));
        }
        layers.extend(self.config.as_deref().map(read_file).transpose()?);
        let flag = |on: bool| if on { json!(true) } else { Value::Null };
        layers.extend(option_layers(vec![
            ("model", path_setting("--model", self.model.as_deref())?),
            ("data", path_setting("--data", self.data.as_deref())?),
            ("method", json!(self.method)),
            ("target_modules", json!(self.targets)),
            ("experts", json!(self.experts)),
            ("start_from", path_setting("--start-from", self.start_from.as_deref())?),
            ("task", json!(self.task)),
            ("train.steps", json!(self.steps)),
            ("train.epochs", json!(self.epochs)),
            ("train.micro_batch", json!(self.micro_batch)),
            ("train.grad_accumulation", json!(self.grad_accumulation)),
            ("train.learning_rate", number(self.learning_rate)),
            ("train.projector_learning_rate", number(self.projector_learning_rate)),
            ("train.warmup_steps", json!(self.warmup_steps)),
            ("train.schedule", json!(self.schedule)),
            ("train.min_learning_rate", number(self.min_learning_rate)),
            ("train.max_grad_norm", number(self.max_grad_norm.map(f64::from))),
            ("train.weight_decay", number(self.weight_decay)),
            ("train.seed", json!(self.seed)),
            ("train.eval_every", json!(self.eval_every)),
            ("train.save_every", json!(self.save_every)),
            ("train.patience", json!(self.patience)),
            ("train.recompute", flag(self.recompute)),
            ("text.max_length", json!(self.max_length)),
            ("vision", json!(self.vision)),
            ("train.align_epochs", json!(self.align_epochs)),
            ("text.columns", if self.columns.is_empty() { Value::Null } else { json!(self.columns) }),
            ("train.valid_share", json!(self.valid_share)),
            ("text.image_folder", json!(self.image_folder)),
            ("text.on_bad_image", json!(self.on_bad_image)),
            ("text.feature_memory", json!(self.features.feature_memory)),
            ("text.feature_cache", path_setting("--feature-cache", self.features.feature_cache.as_deref())?),
            ("text.template", json!(self.template)),
            ("text.loss_on_all", flag(self.loss_on_all)),
            ("text.allow_untrained_eos", flag(self.allow_untrained_eos)),
            ("device.name", json!(self.device)),
            ("device.threads", json!(self.threads)),
            ("device.memory_budget", json!(self.fit.clone().flatten().or(self.memory_budget.clone()))),
            ("device.weights", json!(self.weights.given())),
        ])?);
        let method = method(&layers, &Methods::builtin())?;
        // Options of the stored method are none of another one; that the method is another is refused elsewhere.
        if stored.is_some_and(|s| s.method.spec().name != method.name)
            && let Some(first) = layers[0].1.as_object_mut()
        {
            first.remove("options");
        }
        let set = set_layers(&self.set, method)?;
        layers.extend(set);
        Ok(layers)
    }
}

/// A path that settings can hold, which are text.
fn path_setting(option: &str, path: Option<&Path>) -> Result<Value, Failure> {
    let Some(path) = path else { return Ok(Value::Null) };
    let text = path.to_str().map(Value::from);
    text.ok_or_else(|| Failure::Usage(format!("{option}: {path:?} is not UTF-8, as settings are; rename it")))
}

/// A number, as text where JSON has none (NaN, infinity), so that it is refused by name and not passed over.
fn number(v: Option<f64>) -> Value {
    v.map_or(Value::Null, |v| {
        serde_json::Number::from_f64(v).map_or_else(|| json!(v.to_string()), Value::from)
    })
}
