//! What a row reaches at its best learning rate.

use super::check::exact_match;
use super::{Cell, Description, Result, TUNING, Tuning};
use crate::Stream;
use crate::mixture::Tree;
use crate::study::bootstrap::{Estimate, bootstrap};
use crate::study::cell::Part;
use crate::study::stats::{answers, deviation, mean};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A row of the study.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub name: String,
    /// None without cells.
    pub method: Option<String>,
    pub options: Tree,
    pub tuning: Tuning,
    /// What was reached at the best rate; none where there is none.
    pub at_best: Option<AtBest>,
}

/// Means over the seeds of the best rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AtBest {
    pub seeds: Vec<u64>,
    /// Processors and adapters of these cells.
    pub devices: BTreeSet<String>,
    pub trained_values: u64,
    pub active_values: u64,
    pub router: Option<f64>,
    pub forgotten: Option<ForgottenMean>,
    /// By part, those behind [`TUNING`] that were asked.
    pub parts: BTreeMap<String, PartResult>,
    /// Training loss by step.
    pub curve: Vec<(usize, f64)>,
}

/// Mean of what was forgotten.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ForgottenMean {
    pub prompts: usize,
    pub kl: f64,
    pub unchanged: f64,
}

/// A part over seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartResult {
    pub seeds: Vec<u64>,
    /// Exact match of each seed, the mean over tasks.
    pub by_seed: Vec<f64>,
    /// The mean of seeds with its interval; with one seed the interval is about questions alone.
    pub exact_match: Estimate,
    /// The standard deviation over seeds; none of one.
    pub deviation: Option<f64>,
    pub loss: f64,
    pub tasks: BTreeMap<String, TaskResult>,
}

/// A task over seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskResult {
    pub exact_match: f64,
    pub loss: f64,
}

impl Row {
    /// A row from its cells, by rate and seed.
    pub(super) fn of(name: &str, cells: &[&Cell], tuning: Tuning, description: &Description) -> Result<Self> {
        let best: Vec<&Cell> =
            cells.iter().copied().filter(|cell| Some(cell.learning_rate) == tuning.best).collect();
        Ok(Row {
            name: name.into(),
            method: cells.first().map(|cell| cell.method.clone()),
            options: cells.first().map(|cell| cell.options.clone()).unwrap_or_default(),
            tuning,
            at_best: if best.is_empty() { None } else { Some(AtBest::of(&best, description)?) },
        })
    }
}

impl AtBest {
    fn of(cells: &[&Cell], description: &Description) -> Result<Self> {
        let of_cells = |value: &dyn Fn(&Cell) -> Option<f64>| -> Option<f64> {
            mean(&cells.iter().filter_map(|cell| value(cell)).collect::<Vec<f64>>())
        };
        let whole = |value: &dyn Fn(&Cell) -> u64| {
            of_cells(&|cell| Some(value(cell) as f64)).unwrap_or_default().round() as u64
        };
        let forgotten = || {
            Some(ForgottenMean {
                prompts: cells.iter().find_map(|cell| cell.forgotten.as_ref())?.prompts,
                kl: of_cells(&|cell| Some(cell.forgotten.as_ref()?.kl))?,
                unchanged: of_cells(&|cell| Some(cell.forgotten.as_ref()?.unchanged))?,
            })
        };
        let mut parts = BTreeMap::new();
        for part in description.parts.iter().filter(|part| *part != TUNING) {
            if let Some(result) = PartResult::of(part, cells, description)? {
                parts.insert(part.clone(), result);
            }
        }
        Ok(AtBest {
            seeds: cells.iter().map(|cell| cell.seed).collect(),
            devices: cells.iter().map(|cell| cell.measured.device.clone()).collect(),
            trained_values: whole(&|cell| cell.trained_values),
            active_values: whole(&|cell| cell.active_values),
            router: of_cells(&|cell| cell.router),
            forgotten: forgotten(),
            parts,
            curve: curve(cells),
        })
    }
}

impl PartResult {
    /// None where no cell was asked the part.
    fn of(name: &str, cells: &[&Cell], description: &Description) -> Result<Option<Self>> {
        let asked: Vec<&Cell> = cells.iter().copied().filter(|cell| cell.parts.contains_key(name)).collect();
        let parts: Vec<&Part> = asked.iter().filter_map(|cell| cell.parts.get(name)).collect();
        let Some(first) = parts.first() else { return Ok(None) };
        let by_seed: Vec<f64> = asked.iter().filter_map(|cell| exact_match(cell, name)).collect();
        let all: Vec<_> = parts.iter().map(|part| answers(part)).collect();
        let stream = Stream::new(0).named(&format!("{}\n{name}", asked[0].name));
        let tasks = first.tasks.keys().filter_map(|task| Some((task.clone(), TaskResult::of(task, &parts)?)));
        let losses: Vec<f64> = parts.iter().map(|part| part.loss).collect();
        Ok(Some(PartResult {
            seeds: asked.iter().map(|cell| cell.seed).collect(),
            exact_match: bootstrap(&all, description.questions, description.resamples, stream)?,
            deviation: deviation(&by_seed),
            by_seed,
            loss: mean(&losses).unwrap_or(f64::NAN),
            tasks: tasks.collect(),
        }))
    }
}

impl TaskResult {
    fn of(task: &str, parts: &[&Part]) -> Option<Self> {
        let tasks: Vec<_> = parts.iter().filter_map(|part| part.tasks.get(task)).collect();
        let right = |text: &str| text.bytes().filter(|sign| *sign == b'1').count() as f64 / text.len() as f64;
        let shares: Vec<f64> = tasks.iter().map(|task| right(&task.right)).collect();
        let losses: Vec<f64> = tasks.iter().map(|task| task.loss).collect();
        Some(TaskResult { exact_match: mean(&shares)?, loss: mean(&losses)? })
    }
}

/// The mean over cells at each step that one of them has.
fn curve(cells: &[&Cell]) -> Vec<(usize, f64)> {
    let mut steps: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (step, loss) in cells.iter().flat_map(|cell| &cell.curve) {
        steps.entry(*step).or_default().push(*loss);
    }
    steps.into_iter().filter_map(|(step, losses)| Some((step, mean(&losses)?))).collect()
}
