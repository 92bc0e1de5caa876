//! The best learning rate of a row.

use super::check::exact_match;
use super::{Cell, TUNING};
use crate::study::stats::mean;
use serde::Serialize;
use std::collections::BTreeSet;

/// Exact match that differs by less is the same: sums of quotients are not exact.
const EQUAL: f64 = 1e-9;

/// What is to be known of a best rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// The row was trained at one rate only: nothing was tuned.
    OneRate,
    /// No lower rate was tried: a better one may lie below.
    Lowest,
    /// No higher rate was tried: a better one may lie above.
    Highest,
}

/// A learning rate with the means over those seeds that all rates of the row have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rate {
    pub learning_rate: f64,
    /// Cells of this rate, of all seeds.
    pub cells: usize,
    pub exact_match: Option<f64>,
    pub loss: Option<f64>,
}

/// How the learning rate of a row was chosen: by the highest mean exact match on [`TUNING`] over seeds and tasks, of
/// equal ones by the lower loss there, then by the lower rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tuning {
    /// Seeds that every rate was asked [`TUNING`] with.
    pub seeds: Vec<u64>,
    /// All rates, from low to high.
    pub rates: Vec<Rate>,
    /// The best rate; none without cells, or where no seed has all rates.
    pub best: Option<f64>,
    pub mark: Option<Mark>,
}

impl Tuning {
    /// The choice from the cells of a row, by rate and seed.
    pub(super) fn of(cells: &[&Cell]) -> Self {
        let by_rate: Vec<&[&Cell]> = cells.chunk_by(|a, b| a.learning_rate == b.learning_rate).collect();
        let asked = |cells: &&[&Cell]| -> BTreeSet<u64> {
            cells.iter().filter(|cell| cell.parts.contains_key(TUNING)).map(|cell| cell.seed).collect()
        };
        let seeds = by_rate.iter().map(asked).reduce(|a, b| &a & &b).unwrap_or_default();
        let rate = |cells: &&[&Cell]| {
            let of_seeds = cells.iter().filter(|cell| seeds.contains(&cell.seed));
            let right: Vec<f64> = of_seeds.clone().filter_map(|cell| exact_match(cell, TUNING)).collect();
            let losses: Vec<f64> = of_seeds.filter_map(|cell| Some(cell.parts.get(TUNING)?.loss)).collect();
            Rate {
                learning_rate: cells[0].learning_rate,
                cells: cells.len(),
                exact_match: mean(&right),
                loss: mean(&losses),
            }
        };
        let rates: Vec<Rate> = by_rate.iter().map(rate).collect();
        let best = best(&rates);
        let mark = best.and_then(|at| match (rates.len(), at) {
            (1, _) => Some(Mark::OneRate),
            (_, 0) => Some(Mark::Lowest),
            (all, at) => (at + 1 == all).then_some(Mark::Highest),
        });
        Tuning {
            seeds: seeds.into_iter().collect(),
            best: best.map(|at| rates[at].learning_rate),
            rates,
            mark,
        }
    }
}

/// The number of the best rate. Where there is one only, nothing is to be chosen.
fn best(rates: &[Rate]) -> Option<usize> {
    if rates.len() == 1 {
        return Some(0);
    }
    let highest = rates.iter().filter_map(|rate| rate.exact_match).reduce(f64::max)?;
    let equal = |rate: &Rate| rate.exact_match.is_some_and(|right| right >= highest - EQUAL);
    // A loss that is not a number is that of a run that diverged.
    let loss = |rate: &Rate| rate.loss.filter(|loss| !loss.is_nan()).unwrap_or(f64::INFINITY);
    let candidates = rates.iter().enumerate().filter(|(_, rate)| equal(rate));
    Some(candidates.min_by(|a, b| loss(a.1).total_cmp(&loss(b.1)))?.0)
}
