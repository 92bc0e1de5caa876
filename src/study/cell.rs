//! One training run of a study with what it was measured at: a small JSON file that can be checked in.

use crate::mixture::Tree;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The layout of the file.
pub const FORMAT: u32 = 1;

/// A method at one learning rate with one seed, trained and asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    pub format: u32,
    /// Tells apart what all cells of a study share: model, data, training but for the learning rate and the seed.
    pub study: String,
    /// The row of the study's file.
    pub name: String,
    pub method: String,
    /// All options of the method.
    pub options: Tree,
    pub learning_rate: f64,
    pub seed: u64,
    pub steps: usize,
    pub trained_values: u64,
    /// Values of the adapter that act on one token, over all linears.
    pub active_values: u64,
    /// Share of the questions of the final part whose group is that of their task, of methods that choose a group.
    pub router: Option<f64>,
    /// What was asked, by part: `tuning`, `final`, and others that the study's file names.
    pub parts: BTreeMap<String, Part>,
    pub forgotten: Option<Forgotten>,
    /// Loss over the steps: step and the mean of those since the point before.
    pub curve: Vec<(usize, f64)>,
    pub measured: Measured,
}

/// Questions of one part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Mean cross-entropy of the wanted tokens.
    pub loss: f64,
    pub tasks: BTreeMap<String, TaskAnswers>,
}

/// Questions of one task, in the order of the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskAnswers {
    /// Mean cross-entropy of the wanted tokens.
    pub loss: f64,
    /// For each question `1` where all wanted tokens are the likeliest, else `0`.
    pub right: String,
}

/// What training did to answers that it was not about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forgotten {
    pub prompts: usize,
    /// Mean over the tokens of the base model's answers of `KL(base || adapted)`, in nats.
    pub kl: f64,
    /// Share of prompts whose greedy answer is the base model's.
    pub unchanged: f64,
}

/// Times, memory and energy: all that may differ between two runs of a cell on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Processor or adapter, and what else its figures depend on.
    pub device: String,
    pub threads: Option<usize>,
    pub version: String,
    pub train_seconds: f64,
    pub ask_seconds: f64,
    /// Trained and prompt tokens of a second of training.
    pub tokens_per_second: f64,
    /// Milliseconds of a forward pass over one question of the final part, the median.
    pub question_ms: f64,
    /// Most bytes that the device held.
    pub peak_bytes: Option<u64>,
    /// Bytes of the stored adapter.
    pub adapter_bytes: u64,
    /// Share of the threads' time that was computed in, 0 to 1.
    pub utilisation: Option<f64>,
    /// Joules of training, where the machine counts them.
    pub joules: Option<f64>,
}
