//! The settings of a run: what each is, and which values it takes.

use mixlora::mixture::{Kind, Range};
use mixlora::model::Weights;
use mixlora::train::Decay;
use std::ops::Bound::{Excluded, Included, Unbounded};

/// A setting by its path.
pub struct Setting {
    pub path: &'static str,
    pub about: &'static str,
    pub takes: Takes,
    /// Whether it may be absent (`null` in JSON).
    pub optional: bool,
}

/// The values that a setting takes.
#[derive(Clone, Copy)]
pub enum Takes {
    Value(Kind, Range),
    /// A list of texts, and nothing shorter that stands for one.
    Texts,
    /// The name of a method.
    Method,
    /// A list of tables.
    Stages,
}

const ANY: Range = Range::between(Unbounded, Unbounded);
const TEXT: Takes = Takes::Value(Kind::Text, ANY);
const FLAG: Takes = Takes::Value(Kind::Flag, ANY);
const FROM_0_UP: Takes = Takes::Value(Kind::Integer, Range::between(Included(0.0), Unbounded));
const FROM_1_UP: Takes = Takes::Value(Kind::Integer, Range::between(Included(1.0), Unbounded));
const NUMBER: Takes = Takes::Value(Kind::Number, ANY);
const FROM_0: Takes = Takes::Value(Kind::Number, Range::between(Included(0.0), Unbounded));
const ABOVE_0: Takes = Takes::Value(Kind::Number, Range::between(Excluded(0.0), Unbounded));
const SHARE: Takes = Takes::Value(Kind::Number, Range::between(Included(0.0), Included(1.0)));
const INNER_SHARE: Takes = Takes::Value(Kind::Number, Range::between(Excluded(0.0), Excluded(1.0)));
const SOME_SHARE: Takes = Takes::Value(Kind::Number, Range::between(Excluded(0.0), Included(1.0)));

const fn setting(path: &'static str, about: &'static str, takes: Takes) -> Setting {
    Setting { path, about, takes, optional: false }
}

impl Setting {
    const fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
}

/// A setting of the list, or of a stage.
pub fn find(path: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.path == path)
}

/// All settings but the options of methods, which describe themselves.
pub const SETTINGS: &[Setting] = &[
    setting("model", "a .gguf file or a Hugging Face directory", TEXT),
    setting("vision", "the vision part of a model that has none: a GGUF file (mmproj), or a directory with a tower", TEXT).optional(),
    setting("data", "a file (.jsonl, .json, .csv, .tsv, .txt), or a folder with train.jsonl and, if you like, valid.jsonl", TEXT),
    setting("method", "see `mixlora methods`", Takes::Method),
    setting("target_modules", "projections that get an adapter", Takes::Texts),
    setting("experts", "folders of trained LoRAs that the method mixes, each DIR or NAME=DIR", Takes::Texts),
    setting("start_from", "an adapter of the same method, or a run, whose values the run starts with", TEXT).optional(),
    setting("task", "the task of samples that name none", TEXT).optional(),
    setting("stages", "runs one after the other, as [[stages]] with data, steps and task; each starts from the one before", Takes::Stages),
    setting("train.steps", "optimizer steps; by default what epochs gives", FROM_1_UP).optional(),
    setting("train.epochs", "times that every example is seen", ABOVE_0),
    setting("train.micro_batch", "examples that go through the model together", FROM_1_UP),
    setting("train.grad_accumulation", "micro-batches of one optimizer step", FROM_1_UP),
    setting("train.learning_rate", "of AdamW, after the warm-up", ABOVE_0),
    setting("train.projector_learning_rate", "of the projector of a model that sees, which is then trained whole and kept with the adapter", ABOVE_0).optional(),
    setting("train.align_epochs", "passes in which a new projector learns alone, on its tower's features, before the first step; 0: none", FROM_0_UP),
    setting("train.warmup_steps", "steps of linear warm-up; by default 3 % of the run", FROM_0_UP).optional(),
    setting("train.schedule", "after the warm-up: cosine, linear, constant, wsd or cosine_restarts", Takes::Value(Kind::Word(&Decay::WORDS), ANY)),
    setting("train.min_learning_rate", "what every schedule but the constant one falls to by the end", FROM_0),
    setting("train.decay_share", "of wsd: share of the steps, at the end, in which the rate falls; it is constant before", SOME_SHARE),
    setting("train.restarts", "of cosine_restarts: equal cycles, each of which begins at the learning rate", FROM_1_UP),
    setting("train.max_grad_norm", "gradients are clipped to this norm; 0: never", FROM_0),
    setting("train.weight_decay", "of AdamW", FROM_0),
    setting("train.seed", "of initial values, order of examples and dropout", FROM_0_UP),
    setting("train.recompute", "gradient checkpointing: less memory, a third more time", FLAG),
    setting("train.bucket_steps", "sort the examples of so many steps by length, so that less is padded; 0: off", FROM_0_UP),
    setting("train.valid_share", "share of the samples that validate, where the data has none for that", INNER_SHARE).optional(),
    setting("train.eval_every", "steps between validations; by default 5 % of the run", FROM_1_UP).optional(),
    setting("train.save_every", "steps between checkpoints; by default as eval_every", FROM_1_UP).optional(),
    setting("train.patience", "stop after so many validations in a row without a better loss; never where it is not set", FROM_1_UP).optional(),
    setting("train.answers", "validation samples with short answers that are answered at the end, for exact match; 0: none", FROM_0_UP),
    setting("train.keep", "checkpoints kept besides the best one", FROM_1_UP),
    setting("train.max_skipped", "steps with a loss or gradient that is not finite that may be left out", FROM_0_UP),
    setting("text.tokenizer", "a tokenizer.json, instead of the model's", TEXT).optional(),
    setting("text.template", "chatml, or a Jinja file, instead of the model's chat template", TEXT).optional(),
    setting("text.max_length", "longest example, in tokens", FROM_0_UP),
    setting("text.loss_on_all", "train every token, not only the assistant's", FLAG),
    setting("text.allow_untrained_eos", "accept assistant turns without an end token", FLAG),
    setting("text.max_untrained", "share of examples that may be left out for having no trained token", SHARE),
    setting("text.columns", "keys or columns of the data that stand for others, each as \"question=prompt\"", Takes::Texts),
    setting("text.image_folder", "folder that relative paths of pictures are of; that of the data file where it is not set", TEXT).optional(),
    setting("text.on_bad_image", "what becomes of samples with a picture that cannot be read: error, or skip", Takes::Value(Kind::Word(&["error", "skip"]), ANY)),
    setting("text.feature_memory", "bytes of pictures' features that stay in memory; more go to files", TEXT),
    setting("text.feature_cache", "a folder where pictures' features are kept for other runs; what is above feature_memory is written in any case", TEXT).optional(),
    setting("device.name", "auto (the best GPU, else the CPU), cpu, gpu, or part of an adapter's name", TEXT),
    setting("device.threads", "threads of the CPU device; by default one per core", FROM_1_UP).optional(),
    setting("device.memory_budget", "bytes that the device may hold, such as \"6GiB\"", TEXT).optional(),
    setting("device.weights", "the format of the model's matrices in memory: auto, file, or one that they are quantised or dequantised to", Takes::Value(Kind::Word(&Weights::NAMES), ANY)),
];

/// The settings of one stage.
pub const STAGE: &[Setting] = &[
    setting(
        "data",
        "a file (.jsonl, .json, .csv, .tsv, .txt), or a folder with train.jsonl and, if you like, valid.jsonl",
        TEXT,
    ),
    setting("steps", "optimizer steps; where it is not set those of the whole run's settings", FROM_1_UP)
        .optional(),
    setting("task", "the task of its samples that name none, and its name in tables", TEXT).optional(),
    setting(
        "solved_below",
        "mean loss below which a task counts as solved: the stage ends with its share of them",
        NUMBER,
    )
    .optional(),
    setting("least_steps", "steps before it may end so", FROM_0_UP),
];
