//! How far rows are from baselines.

use super::{Cell, Description, Result, TUNING};
use crate::Stream;
use crate::study::bootstrap::{Estimate, bootstrap};
use crate::study::stats::differences;
use serde::Serialize;

/// A row less a baseline on a part, each at its best learning rate. Cells are compared in pairs of one seed and one
/// device: only then do they differ by what the row is, and not by order of sums on another processor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    pub row: String,
    pub baseline: String,
    pub part: String,
    /// Seeds of the pairs.
    pub seeds: Vec<u64>,
    /// Seeds that both have, on different devices: no pairs.
    pub other_device: Vec<u64>,
    /// Exact match of the row less that of the baseline; none without a pair.
    pub estimate: Option<Estimate>,
}

impl Difference {
    /// Whether the interval is on one side of 0.
    pub fn is_clear(&self) -> bool {
        self.estimate.is_some_and(|estimate| estimate.low > 0.0 || estimate.high < 0.0)
    }

    /// Why there is no figure; none where there is one.
    pub fn why_none(&self) -> Option<&'static str> {
        match (self.seeds.is_empty(), self.other_device.is_empty()) {
            (false, _) => None,
            (true, true) => Some("no seed in common"),
            (true, false) => Some("seeds in common are of different devices"),
        }
    }

    fn of(row: &[&Cell], baseline: &[&Cell], names: [&str; 3], description: &Description) -> Result<Self> {
        let [name, from, part] = names;
        let mut found = Difference {
            row: name.into(),
            baseline: from.into(),
            part: part.into(),
            seeds: Vec::new(),
            other_device: Vec::new(),
            estimate: None,
        };
        let mut pairs = Vec::new();
        for cell in row {
            let Some(other) = baseline.iter().find(|other| other.seed == cell.seed) else { continue };
            let (Some(of), Some(from)) = (cell.parts.get(part), other.parts.get(part)) else { continue };
            if cell.measured.device == other.measured.device {
                found.seeds.push(cell.seed);
                pairs.push(differences(of, from)?);
            } else {
                found.other_device.push(cell.seed);
            }
        }
        if !pairs.is_empty() {
            let stream = Stream::new(0).named(&names.join("\n"));
            found.estimate = Some(bootstrap(&pairs, description.questions, description.resamples, stream)?);
        }
        Ok(found)
    }
}

/// Each row less each baseline, by part. `best` are the cells of each row at its best rate.
pub(super) fn all(best: &[Vec<&Cell>], description: &Description) -> Result<Vec<Difference>> {
    let mut found = Vec::new();
    let rows = || description.rows.iter().zip(best).filter(|(_, cells)| !cells.is_empty());
    for from in &description.baselines {
        let Some((_, baseline)) = rows().find(|(name, _)| *name == from) else { continue };
        for part in description.parts.iter().filter(|part| *part != TUNING) {
            let asked = |cells: &[&Cell]| cells.iter().any(|cell| cell.parts.contains_key(part));
            for (name, row) in rows().filter(|(name, row)| *name != from && asked(row) && asked(baseline)) {
                found.push(Difference::of(row, baseline, [name, from, part], description)?);
            }
        }
    }
    Ok(found)
}
