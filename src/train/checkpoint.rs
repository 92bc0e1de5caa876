//! What a checkpoint holds besides the adapter: the optimizer's moments, and where the run stands.

use super::Optimizer;
use crate::adapter::Matrix;
use crate::data::Cursor;
use crate::io::{Checkpoint, safetensors_bytes};
use crate::nn::Param;
use crate::{Error, Result, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const STATE: &str = "state.json";
/// Raised when the meaning of stored state changes.
pub(super) const VERSION: u32 = 1;

/// Where a run stands. With the options and the seed it determines everything that follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub version: u32,
    /// Optimizer steps done, skipped ones included.
    pub step: usize,
    /// Updates done by the optimizer.
    pub updates: u32,
    pub cursor: Cursor,
    pub tokens: u64,
    pub trained_tokens: u64,
    pub skipped: usize,
    /// Lowest validation loss and its step.
    pub best: Option<(f64, usize)>,
    /// Validations since that had no better loss, and the step of the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_best: Option<(usize, usize)>,
    /// Frozen rows of trained parameters, by the names of their parts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub frozen_rows: BTreeMap<String, Vec<Range<usize>>>,
}

impl Default for State {
    fn default() -> Self {
        State {
            version: VERSION,
            step: 0,
            updates: 0,
            cursor: Cursor::default(),
            tokens: 0,
            trained_tokens: 0,
            skipped: 0,
            best: None,
            since_best: None,
            frozen_rows: BTreeMap::new(),
        }
    }
}

impl State {
    /// Validations in a row, up to the last one, that had no better loss than one before.
    pub fn validations_without_better(&self) -> usize {
        self.since_best.map_or(0, |(count, _)| count)
    }

    /// Counts the validation of the present step, after `best` was looked at. One that is repeated, as when a run goes on
    /// that had ended, counts once.
    pub(super) fn count_validation(&mut self) {
        self.since_best = match (self.best, self.since_best) {
            (Some((_, step)), _) if step == self.step => None,
            (_, Some((count, step))) if step >= self.step => Some((count, step)),
            (_, before) => Some((before.map_or(0, |(count, _)| count) + 1, self.step)),
        };
    }

    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(STATE);
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|error| Error::file(&path, format!("cannot be read: {error}")))?;
        let state: State =
            serde_json::from_str(&text).map_err(|error| Error::file(&path, error.to_string()))?;
        match state.version {
            VERSION => Ok(state),
            v => Err(Error::file(&path, format!("has version {v}, this program writes {VERSION}"))),
        }
    }
}

/// The frozen rows of parameters, by the names of their parts.
pub(super) fn frozen_rows(params: &[Param]) -> BTreeMap<String, Vec<Range<usize>>> {
    let mut all: BTreeMap<String, Vec<Range<usize>>> = BTreeMap::new();
    for (part, rows) in params.iter().flat_map(Param::frozen_by_part) {
        all.entry(part).or_default().push(rows);
    }
    all
}

/// Freezes stored rows again.
pub(super) fn freeze_again(params: &[Param], stored: &BTreeMap<String, Vec<Range<usize>>>) -> Result<()> {
    for (part, all) in stored {
        let has = |p: &&Param| p.parts().iter().any(|(name, _)| name == part);
        let param = params.iter().find(has);
        let param = param.ok_or_else(|| Error::refused(part, "has frozen rows, but is not trained here"))?;
        all.iter().try_for_each(|rows| param.freeze_rows(part, rows.clone()))?;
    }
    Ok(())
}

/// Both moments of a part, by name.
fn names(part: &str) -> [String; 2] {
    [format!("{part}.exp_avg"), format!("{part}.exp_avg_sq")]
}

/// The optimizer's moments as a safetensors file.
pub(super) fn optimizer_bytes(optimizer: &Optimizer) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    for (p, (m, v)) in optimizer.params().iter().zip(optimizer.moments()) {
        for (which, moment) in [m, v].into_iter().enumerate() {
            for matrix in Matrix::of(p, moment)? {
                let name = names(&matrix.name)[which].clone();
                all.push(matrix.named(name));
            }
        }
    }
    safetensors_bytes(all)
}

/// Puts stored moments back.
pub(super) fn restore_optimizer(optimizer: &mut Optimizer, dir: &Path, updates: u32) -> Result<()> {
    let file = Checkpoint::open(dir.join(OPTIMIZER))?;
    let moment = |p: &Param, which: usize| -> Result<Tensor> {
        let value = p.value();
        // A vector has one value in each row.
        let width = value.len() / p.parts().iter().map(|part| part.1).sum::<usize>().max(1);
        let mut parts = HashMap::new();
        for (part, rows) in p.parts() {
            parts.insert(part.as_str(), file.f32(&names(part)[which], &[*rows, width])?);
        }
        let all: Vec<f32> = p.parts().iter().flat_map(|(n, _)| parts[n.as_str()].iter().copied()).collect();
        Tensor::from_f32(value.device(), value.dims(), &all)
    };
    let moments = optimizer.params().iter().map(|p| Ok((moment(p, 0)?, moment(p, 1)?)));
    let moments = moments.collect::<Result<Vec<_>>>()?;
    optimizer.restore(moments, updates);
    Ok(())
}
