//! Memory, utilisation, latency, throughput, energy and size: what may differ between two runs of a study.

use super::{Cell, Description};
use crate::bench::quantile;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// All that was measured and not computed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurements {
    /// By row and device, at the best learning rate.
    pub rows: Vec<Efficiency>,
    /// What all cells took, by device.
    pub cost: Vec<Cost>,
}

/// The six figures of EfficientLLM (arXiv:2505.13840) of a row on a device, each the median over cells.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Efficiency {
    pub row: String,
    pub device: String,
    pub cells: usize,
    /// Most bytes held.
    pub peak_bytes: Option<f64>,
    /// Share of the threads' time that was computed in.
    pub utilisation: Option<f64>,
    /// Latency: milliseconds of a training step, and of a question.
    pub step_ms: Option<f64>,
    pub question_ms: Option<f64>,
    pub tokens_per_second: Option<f64>,
    pub joules: Option<f64>,
    pub adapter_bytes: Option<f64>,
}

/// Time of all cells of a device, those that were not best included.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    pub device: String,
    pub cells: usize,
    pub threads: BTreeSet<usize>,
    pub versions: BTreeSet<String>,
    pub train_seconds: f64,
    pub ask_seconds: f64,
    /// Joules of those cells that counted them.
    pub joules: Option<f64>,
}

impl Measurements {
    pub(super) fn of(cells: &[&Cell], best: &[Vec<&Cell>], description: &Description) -> Self {
        let rows = description.rows.iter().zip(best).flat_map(|(name, cells)| {
            let of_device = move |(device, cells): (String, Vec<&Cell>)| Efficiency::of(name, device, &cells);
            by_device(cells).into_iter().map(of_device)
        });
        Measurements { rows: rows.collect(), cost: by_device(cells).into_iter().map(Cost::of).collect() }
    }
}

fn by_device<'a>(cells: &[&'a Cell]) -> BTreeMap<String, Vec<&'a Cell>> {
    let mut found: BTreeMap<String, Vec<&Cell>> = BTreeMap::new();
    for cell in cells {
        found.entry(cell.measured.device.clone()).or_default().push(cell);
    }
    found
}

impl Efficiency {
    fn of(row: &str, device: String, cells: &[&Cell]) -> Self {
        let median = |value: &dyn Fn(&Cell) -> Option<f64>| {
            let values: Vec<f64> = cells.iter().filter_map(|cell| value(cell)).collect();
            (!values.is_empty()).then(|| quantile(&values, 0.5))
        };
        Efficiency {
            row: row.into(),
            device,
            cells: cells.len(),
            peak_bytes: median(&|cell| cell.measured.peak_bytes.map(|bytes| bytes as f64)),
            utilisation: median(&|cell| cell.measured.utilisation),
            step_ms: median(&|cell| {
                (cell.steps > 0).then(|| 1e3 * cell.measured.train_seconds / cell.steps as f64)
            }),
            question_ms: median(&|cell| Some(cell.measured.question_ms)),
            tokens_per_second: median(&|cell| Some(cell.measured.tokens_per_second)),
            joules: median(&|cell| cell.measured.joules),
            adapter_bytes: median(&|cell| Some(cell.measured.adapter_bytes as f64)),
        }
    }
}

impl Cost {
    fn of((device, cells): (String, Vec<&Cell>)) -> Self {
        let joules: Vec<f64> = cells.iter().filter_map(|cell| cell.measured.joules).collect();
        Cost {
            device,
            cells: cells.len(),
            threads: cells.iter().filter_map(|cell| cell.measured.threads).collect(),
            versions: cells.iter().map(|cell| cell.measured.version.clone()).collect(),
            train_seconds: cells.iter().map(|cell| cell.measured.train_seconds).sum(),
            ask_seconds: cells.iter().map(|cell| cell.measured.ask_seconds).sum(),
            joules: (!joules.is_empty()).then(|| joules.iter().sum()),
        }
    }
}
