//! What the cells of a study say together.

mod bars;
mod check;
mod differences;
mod markdown;
mod measured;
mod pictures;
mod rows;
#[cfg(test)]
mod tests;
mod tuning;

use super::bootstrap::{Questions, RESAMPLES};
use super::cell::Cell;
use super::stats::spearman;
use crate::{Error, Result};
use check::{exact_match, sorted};
use serde::Serialize;

pub use differences::Difference;
pub use measured::{Cost, Efficiency, Measurements};
pub use pictures::Picture;
pub use rows::{AtBest, ForgottenMean, PartResult, Row, TaskResult};
pub use tuning::{Mark, Rate, Tuning};

/// The part that the learning rate is chosen by.
pub const TUNING: &str = "tuning";
/// The part that results are from.
pub const FINAL: &str = "final";

/// What a report is told beside the cells.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    pub title: String,
    /// Names of the rows in the order of the study's file.
    pub rows: Vec<String>,
    /// Rows that all others are compared with.
    pub baselines: Vec<String>,
    /// All parts in their order, [`TUNING`] and [`FINAL`] among them.
    pub parts: Vec<String>,
    pub questions: Questions,
    pub resamples: usize,
}

impl Default for Description {
    fn default() -> Self {
        Description {
            title: "Study".into(),
            rows: Vec::new(),
            baselines: Vec::new(),
            parts: vec![TUNING.into(), FINAL.into()],
            questions: Questions::default(),
            resamples: RESAMPLES,
        }
    }
}

/// A part with what its questions are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartSize {
    pub name: String,
    /// Tasks in the order of their names; none where no cell was asked this part.
    pub tasks: Vec<TaskSize>,
    /// Questions of all tasks.
    pub questions: usize,
}

/// A task with the number of its questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskSize {
    pub name: String,
    pub questions: usize,
}

/// How well the order of cells on one part tells that on another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RankCorrelation {
    /// Cells that were asked both parts.
    pub cells: usize,
    /// Spearman's correlation of exact match on [`TUNING`] and on [`FINAL`]; none where it is not defined.
    pub spearman: Option<f64>,
}

/// A study in figures. All but the times, memory and energy of [`measured`](Report::measured) depend on answers alone:
/// cells that differ only there give the same bytes of everything else.
///
/// ```
/// use mixlora::mixture::Tree;
/// use mixlora::study::{Cell, Description, FORMAT, Measured, Part, Report, TaskAnswers};
/// let cell = |name: &str, seed, right: &str| {
///     let task = TaskAnswers { loss: 0.5, right: right.into() };
///     let part = Part { loss: 0.5, tasks: [("sums".to_string(), task)].into() };
///     let measured = Measured {
///         device: "a processor".into(), threads: Some(2), version: "1".into(), train_seconds: 60.0, ask_seconds: 5.0,
///         tokens_per_second: 900.0, question_ms: 8.0, peak_bytes: None, adapter_bytes: 4096, utilisation: None, joules: None,
///     };
///     Cell {
///         format: FORMAT, study: "8c0d".into(), name: name.into(), method: name.into(), options: Tree::new(),
///         learning_rate: 1e-3, seed, steps: 100, trained_values: 1024, active_values: 1024, router: None,
///         parts: [("tuning".to_string(), part.clone()), ("final".to_string(), part)].into(), forgotten: None,
///         curve: vec![(50, 2.0), (100, 1.0)], measured,
///     }
/// };
/// let cells = [cell("plain", 0, "1100"), cell("plain", 1, "1000"), cell("mixed", 0, "1110"), cell("mixed", 1, "1110")];
/// let description = Description {
///     rows: vec!["plain".into(), "mixed".into()],
///     baselines: vec!["plain".into()],
///     ..Description::default()
/// };
/// let report = Report::of(&cells, &description)?;
/// assert_eq!(report.differences[0].estimate.unwrap().mean, 0.375);
/// assert!(report.markdown().contains("+37.50"));
/// assert!(report.json().contains("\"measured\""));
/// assert!(report.pictures().iter().all(|picture| picture.svg.starts_with("<svg")));
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub title: String,
    /// What all cells share; empty without cells.
    pub study: String,
    pub cells: usize,
    /// Processors and adapters in the order of their names, with the number of cells of each.
    pub devices: Vec<(String, usize)>,
    pub parts: Vec<PartSize>,
    pub baselines: Vec<String>,
    pub questions: Questions,
    pub resamples: usize,
    pub rows: Vec<Row>,
    /// Each row less each baseline, by part behind [`TUNING`].
    pub differences: Vec<Difference>,
    pub rank_correlation: RankCorrelation,
    pub measured: Measurements,
}

impl Report {
    /// The report of finished cells, in whatever order they come. Rows may be without cells: a study need not be done.
    pub fn of(cells: &[Cell], description: &Description) -> Result<Report> {
        let cells = sorted(cells, description)?;
        let mut rows = Vec::new();
        let mut best = Vec::new();
        for name in &description.rows {
            let own: Vec<&Cell> = cells.iter().copied().filter(|cell| cell.name == *name).collect();
            let tuning = Tuning::of(&own);
            let at_best = |cell: &&Cell| Some(cell.learning_rate) == tuning.best;
            best.push(own.iter().copied().filter(at_best).collect::<Vec<&Cell>>());
            rows.push(Row::of(name, &own, tuning, description)?);
        }
        let mut devices: Vec<(String, usize)> = Vec::new();
        for cell in &cells {
            match devices.iter_mut().find(|(name, _)| *name == cell.measured.device) {
                Some((_, count)) => *count += 1,
                None => devices.push((cell.measured.device.clone(), 1)),
            }
        }
        devices.sort();
        Ok(Report {
            title: description.title.clone(),
            study: cells.first().map(|cell| cell.study.clone()).unwrap_or_default(),
            cells: cells.len(),
            devices,
            parts: description.parts.iter().map(|part| size(part, &cells)).collect(),
            baselines: description.baselines.clone(),
            questions: description.questions,
            resamples: description.resamples,
            rows,
            differences: differences::all(&best, description)?,
            rank_correlation: rank_correlation(&cells),
            measured: Measurements::of(&cells, &best, description),
        })
    }

    /// The report as JSON; `measured` is its last key.
    pub fn json(&self) -> String {
        // Keys are texts and values are plain: nothing here can fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// The parts that results are shown of: all but [`TUNING`], in their order.
    fn shown_parts(&self) -> impl Iterator<Item = &PartSize> {
        self.parts.iter().filter(|part| part.name != TUNING)
    }
}

fn size(name: &str, cells: &[&Cell]) -> PartSize {
    let part = cells.iter().find_map(|cell| cell.parts.get(name));
    let tasks = part.map(|part| &part.tasks).into_iter().flatten();
    let tasks = tasks.map(|(name, task)| TaskSize { name: name.clone(), questions: task.right.len() });
    let tasks: Vec<TaskSize> = tasks.collect();
    PartSize { name: name.into(), questions: tasks.iter().map(|task| task.questions).sum(), tasks }
}

fn rank_correlation(cells: &[&Cell]) -> RankCorrelation {
    let both = |cell: &&Cell| Some((exact_match(cell, TUNING)?, exact_match(cell, FINAL)?));
    let [tuning, result]: [Vec<f64>; 2] = cells.iter().filter_map(both).unzip().into();
    RankCorrelation { cells: tuning.len(), spearman: spearman(&tuning, &result) }
}
