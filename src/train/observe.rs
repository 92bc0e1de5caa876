//! How a caller watches a run and stops it.

use super::StepReport;
use crate::Result;
use crate::adapter::Adapter;
use crate::model::Model;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// What stands in tables for samples without a task.
pub const NO_TASK: &str = "-";

/// Where a run stands after a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Steps of the whole run.
    pub steps: usize,
    /// Real tokens trained so far.
    pub tokens: u64,
    /// Real tokens a second in this step.
    pub tok_s: f64,
    /// At the speed of this process so far.
    pub seconds_left: f64,
}

/// What a validation gave.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalReport {
    pub step: usize,
    /// Mean cross-entropy of the trained tokens.
    pub loss: f64,
    pub tokens: usize,
    pub samples: usize,
    pub seconds: f64,
    /// The lowest loss so far.
    pub best: bool,
    /// Further figures, by name; of the last validation.
    pub scores: Vec<(String, f64)>,
}

impl EvalReport {
    /// `exp(loss)`.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// Is told what a run does. Every method has an empty body; `()` watches nothing.
pub trait Observer {
    /// After each optimizer step.
    fn step(&mut self, _report: &StepReport, _progress: &Progress) {}
    /// After each validation.
    fn eval(&mut self, _report: &EvalReport) {}
    /// A checkpoint is complete.
    fn saved(&mut self, _dir: &Path, _best: bool) {}
    /// Asked at the last validation: figures beyond the loss, by name, to be reported with it.
    fn score(&mut self, _model: &Arc<Model>, _adapter: &Adapter) -> Result<Vec<(String, f64)>> {
        Ok(Vec::new())
    }
    /// Something that the user should know, while training goes on.
    fn warning(&mut self, _text: &str) {}
}

impl Observer for () {}

/// When a run is to stop before its end. Asking is possible from any thread: the step that runs is finished first.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    /// Stop after this many steps of the run.
    pub at: Option<usize>,
}

impl Stop {
    /// A stop at a step, if one is given.
    pub fn at(step: Option<usize>) -> Self {
        Stop { at: step, ..Stop::default() }
    }
    /// The same stop, at the latest at a step.
    pub fn by(&self, step: usize) -> Self {
        Stop { at: Some(self.at.map_or(step, |at| at.min(step))), ..self.clone() }
    }
    /// Asks for the end after the step that runs.
    pub fn ask(&self) {
        self.asked.store(true, Relaxed);
    }
    /// Whether the end was asked for.
    pub fn asked(&self) -> bool {
        self.asked.load(Relaxed)
    }
    /// The flag itself, for signal handlers.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.asked.clone()
    }
}

/// Why a run returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Finished,
    /// So many validations in a row as `train.patience` says had no better loss.
    NoBetter,
    /// It was asked to stop; it can be resumed.
    Stopped,
}

impl End {
    /// What ended it, in a word: `steps`, `patience` or `stop`.
    pub fn word(self) -> &'static str {
        match self {
            End::Finished => "steps",
            End::NoBetter => "patience",
            End::Stopped => "stop",
        }
    }
}
