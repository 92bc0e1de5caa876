//! Dropping the rows of pools that data seldom choose.
//!
//! The importance of a row is how much it acts on data times how large it is: `w_e = m_e |a_e| |b_e|`, with m_e the mean of
//! its gates (1 where there are none) over the units that choose, 0 where it is not chosen. Where A and B have choices of their
//! own, each side has its own: `m_e |a_e|` and `m_e |b_e|`.

use super::{Adapter, AdapterWeights, Matrix, linear_sites};
use crate::mixture::{Beside, Entries, Method, Prunes};
use crate::model::Model;
use crate::nn::{Choices, Kept};
use crate::{DType, Error, Result};
use std::collections::BTreeMap;

/// Which rows stay. All pools keep the same number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keep {
    /// So many of each pool, the most important ones.
    Best(usize),
    /// As many as the pool has of which most were chosen: no row that was chosen is dropped.
    Used,
    /// As many as the pool has that has most rows of at least this share of its best row's importance.
    From(f64),
}

/// How much each row of an adapter's pools acts on data.
#[derive(Debug, Clone)]
pub struct Usage {
    sides: usize,
    /// The linears of each site, by its name.
    linears: BTreeMap<String, Vec<String>>,
    /// Sums of gates by linear, side and entry.
    sums: BTreeMap<String, Vec<Vec<f64>>>,
}

/// What was dropped.
#[derive(Debug, Clone, PartialEq)]
pub struct Pruned {
    /// Rows of each pool before and after.
    pub rows: [usize; 2],
    /// Pools, sides counted apart.
    pub pools: usize,
    /// Rows that no data had chosen, of all pools before.
    pub unused: usize,
    /// Share of the importance that was dropped, the largest of a pool and the mean of all.
    pub dropped: [f64; 2],
}

/// The option with the size of the pools, and what they consist of.
fn pools(method: &Method) -> Result<(&'static str, Vec<Entries>)> {
    match method.options().prunes() {
        Prunes::Rows { size, sides } => Ok((size, sides)),
        Prunes::No(why) => {
            Err(Error::refused("method", format!("{} has no rows to prune: {why}", method.name())))
        }
    }
}

impl Usage {
    /// Nothing counted yet.
    ///
    /// # Errors
    /// The method's pools have no rows that could be dropped; the error says why.
    pub fn new(adapter: &Adapter, model: &Model) -> Result<Self> {
        let (_, sides) = pools(&adapter.method)?;
        if !adapter.projector.is_empty() {
            let what = "puts a mixture on the projector, whose choices are not counted: such adapters are not pruned";
            return Err(Error::refused("mix_mm_projector", what));
        }
        let places = linear_sites(model.sites(), &adapter.method, &adapter.targets);
        let names = |linears: Vec<(String, usize)>| linears.into_iter().map(|(path, _)| path).collect();
        let linears = places.map(|place| (place.name.clone(), names(place.linears))).collect();
        Ok(Usage { sides: sides.len(), linears, sums: BTreeMap::new() })
    }

    /// Counts what a pass chose; `weights` are 1 for its rows that count and 0 for padding.
    ///
    /// # Errors
    /// The choices are of another adapter, or the device failed.
    pub fn count(&mut self, choices: &Choices, weights: &[f32]) -> Result<()> {
        for (site, kept) in choices.all() {
            let acts = Acts::of(&kept)?;
            let linears = self.linears.get(&site).filter(|linears| linears.len() == acts.linears);
            let Some(linears) = linears else {
                let found = format!("{} linears", acts.linears);
                return Err(Error::shape("usage", format!("the linears of '{site}'"), found));
            };
            for (l, linear) in linears.iter().enumerate() {
                let sums = self.sums.entry(linear.clone());
                let sums = sums.or_insert_with(|| vec![vec![0.0; acts.entries]; self.sides]);
                // Where one side alone is chosen, it is the last.
                let first = acts.sides - self.sides.min(acts.sides);
                for (side, sums) in sums.iter_mut().enumerate() {
                    acts.add(l, first + side, weights, sums);
                }
            }
        }
        Ok(())
    }

    /// Rows that nothing chose, of all that were counted.
    fn unused(&self) -> usize {
        self.sums.values().flatten().flatten().filter(|sum| **sum == 0.0).count()
    }
}

/// How much each entry acts for each unit of a site.
struct Acts {
    linears: usize,
    sides: usize,
    units: usize,
    chosen: usize,
    entries: usize,
    /// `[L, P, G, K]`, or none where every unit has a value for every entry.
    idx: Option<Vec<u32>>,
    /// `[L, G, K]`, or of every entry `[G, L, E]`; none where all are 1.
    gates: Option<Vec<f32>>,
}

impl Acts {
    fn of(kept: &Kept) -> Result<Self> {
        let gates = kept.gates.as_ref().map(|gates| gates.to_f32()).transpose()?;
        match (kept.choice.dtype(), kept.choice.dims()) {
            (DType::U32, &[linears, sides, units, chosen]) => {
                let idx = Some(kept.choice.to_u32()?);
                Ok(Acts { linears, sides, units, chosen, entries: kept.factors, idx, gates })
            }
            (_, &[units, linears, entries]) => {
                // A mask: which entries act is known, and counts.
                let gates = Some(kept.choice.to_f32()?);
                Ok(Acts { linears, sides: 1, units, chosen: entries, entries, idx: None, gates })
            }
            _ => Err(Error::shape("usage", "choices of a router", kept.choice.shape())),
        }
    }

    /// Adds what the entries of a side do for a linear.
    fn add(&self, l: usize, side: usize, weights: &[f32], sums: &mut [f64]) {
        let counts = |unit: usize| weights.len() != self.units || weights[unit] > 0.0;
        for unit in (0..self.units).filter(|unit| counts(*unit)) {
            for k in 0..self.chosen {
                let (entry, gate) = match &self.idx {
                    Some(idx) => {
                        let at = ((l * self.sides + side) * self.units + unit) * self.chosen + k;
                        let gate = self.gates.as_ref().map(|g| g[(l * self.units + unit) * self.chosen + k]);
                        (idx[at] as usize, gate.unwrap_or(1.0))
                    }
                    None => {
                        let gates = self.gates.as_deref().unwrap_or_default();
                        (k, gates.get((unit * self.linears + l) * self.entries + k).copied().unwrap_or(0.0))
                    }
                };
                if let Some(sum) = sums.get_mut(entry) {
                    *sum += f64::from(gate.abs());
                }
            }
        }
    }
}

/// The norm of each row.
fn norms(matrix: &Matrix) -> Vec<f64> {
    let norm = |row: &[f32]| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    matrix.values.chunks(matrix.cols.max(1)).map(norm).collect()
}

impl Matrix {
    /// Its rows with these numbers.
    fn with_rows(&self, rows: &[usize]) -> Self {
        let values = rows.iter().flat_map(|&row| &self.values[row * self.cols..][..self.cols]).copied();
        Matrix { name: self.name.clone(), rows: rows.len(), cols: self.cols, values: values.collect() }
    }
    /// Its columns with these numbers.
    fn with_columns(&self, columns: &[usize]) -> Self {
        let rows = self.values.chunks(self.cols.max(1));
        let values = rows.flat_map(|row| columns.iter().map(move |&column| row[column]));
        Matrix { name: self.name.clone(), rows: self.rows, cols: columns.len(), values: values.collect() }
    }
    /// What is left of a part where these entries stay, of `all`.
    fn with_entries(&self, beside: Beside, entries: &[usize], all: usize) -> Result<Self> {
        let (held, each) = match beside {
            Beside::Rows(each) => (self.rows, each),
            Beside::Columns => (self.cols, 1),
        };
        if held != all * each {
            let found = format!("{} x {}", self.rows, self.cols);
            return Err(Error::shape("prune", format!("'{}' of {all} entries", self.name), found));
        }
        Ok(match beside {
            Beside::Rows(each) => {
                let rows: Vec<usize> = entries.iter().flat_map(|&e| e * each..(e + 1) * each).collect();
                self.with_rows(&rows)
            }
            Beside::Columns => self.with_columns(entries),
        })
    }
}

/// The method with pools of another size, and an alpha that leaves the scale of its update as it is.
fn resized(method: &Method, size: &str, rows: usize) -> Result<Method> {
    let scale = method.options().scale();
    let resized = method.with(size, rows)?;
    let alpha = method.options().alpha() * (scale / resized.options().scale());
    resized.with("lora_alpha", alpha)
}

impl AdapterWeights {
    /// The same with fewer rows in its pools: those stay that matter most for what was counted, in their order. What goes with
    /// a row goes: its router's row, its bias. All pools keep the same number, which is an option of the method.
    ///
    /// Where scores are compared as they are, rows that nothing chose can go without a change of what chose.
    /// Where a score depends on all rows of a pool (a condition of B on A, scores normalised over the pool), others may be
    /// chosen afterwards: compare the loss.
    ///
    /// # Errors
    /// The method's pools have no rows that could be dropped, fewer rows would be left than a unit chooses, or nothing was
    /// counted.
    pub fn pruned(&self, usage: &Usage, keep: Keep) -> Result<(Self, Pruned)> {
        let (size, sides) = pools(&self.method)?;
        let all = self.method.tree().get(size).and_then(|n| n.as_u64()).unwrap_or(0) as usize;
        if usage.sums.is_empty() {
            return Err(Error::refused(
                "data",
                "nothing was chosen: there is no sample, or no layer with a pool",
            ));
        }
        let mut importance = Vec::new();
        for (linear, counted) in &usage.sums {
            for (side, sums) in sides.iter().zip(counted) {
                importance.push((linear.as_str(), side, sums, self.importance(linear, side, sums, all)?));
            }
        }
        let left = match keep {
            Keep::Best(0) => return Err(Error::config("keep", 0, "at least 1")),
            Keep::Best(rows) if rows > all => {
                return Err(Error::config("keep", rows, format!("at most {all}, the rows of a pool")));
            }
            Keep::Best(rows) => rows,
            Keep::Used => {
                let many = |sums: &[f64]| sums.iter().filter(|sum| **sum > 0.0).count();
                importance.iter().map(|(_, _, sums, _)| many(sums)).max().unwrap_or(all)
            }
            Keep::From(share) if !(0.0..=1.0).contains(&share) => {
                return Err(Error::config("below", share, "a share, from 0 to 1"));
            }
            Keep::From(share) => {
                let many = |w: &[f64]| {
                    let best = w.iter().fold(0.0f64, |best, w| best.max(*w));
                    w.iter().filter(|w| **w >= share * best).count()
                };
                importance.iter().map(|(_, _, _, w)| many(w)).max().unwrap_or(all)
            }
        };
        let mut matrices = self.matrices.clone();
        let mut dropped = Vec::new();
        for (linear, side, sums, w) in &importance {
            let mut entries: Vec<usize> = (0..all).collect();
            // Of rows without importance, those that were chosen: without them others would be.
            entries.sort_by(|a, b| w[*b].total_cmp(&w[*a]).then(sums[*b].total_cmp(&sums[*a])));
            let gone: f64 = entries[left..].iter().map(|&e| w[e]).sum();
            let whole: f64 = w.iter().sum();
            dropped.push(if whole > 0.0 { gone / whole } else { 0.0 });
            entries.truncate(left);
            entries.sort_unstable();
            let factors = side.factors.iter().map(|part| (*part, Beside::Rows(1)));
            for (part, beside) in factors.chain(side.beside.iter().copied()) {
                let name = format!("{linear}.{part}");
                if let Some(matrix) = matrices.iter_mut().find(|m| m.name == name) {
                    *matrix = matrix.with_entries(beside, &entries, all)?;
                }
            }
        }
        let most = dropped.iter().fold(0.0f64, |most, share| most.max(*share));
        let mean = dropped.iter().sum::<f64>() / dropped.len().max(1) as f64;
        let report = Pruned {
            rows: [all, left],
            pools: importance.len(),
            unused: usage.unused(),
            dropped: [most, mean],
        };
        let mut pruned = self.clone();
        pruned.method = resized(&self.method, size, left)?;
        pruned.matrices = matrices;
        Ok((pruned, report))
    }

    /// The importance of the entries of a side of a linear.
    fn importance(&self, linear: &str, side: &Entries, sums: &[f64], all: usize) -> Result<Vec<f64>> {
        let mut importance = sums.to_vec();
        for part in side.factors {
            let name = format!("{linear}.{part}");
            let rows = self.matrix(&name).map(norms).unwrap_or_default();
            if rows.len() != all || importance.len() != all {
                let found = format!("{} rows, {} counted", rows.len(), importance.len());
                return Err(Error::shape("prune", format!("{all} rows of '{name}'"), found));
            }
            importance.iter_mut().zip(rows).for_each(|(w, norm)| *w *= norm);
        }
        Ok(importance)
    }
}
