//! Exact match in one pass: the wanted answer is given token by token, and the likeliest token is looked at in each place.

use super::losses::{plain_pass, states};
use crate::adapter::Bank;
use crate::data::{Batch, Dataset};
use crate::model::Model;
use crate::{Error, Result, Tensor, no_grad};
use rayon::prelude::*;

/// Examples of one pass.
const TOGETHER: usize = 8;

/// What a model makes of the trained tokens of one example.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Scored {
    /// The sum of their cross-entropies.
    pub loss: f64,
    pub tokens: usize,
    /// Whether each is the likeliest one, up to the first end token of every answer.
    pub right: bool,
}

/// Scores every example of a set, in its order.
///
/// The likeliest answer, generated token by token, is the wanted one exactly if every wanted token is the likeliest behind
/// those before it. So one pass tells what generating would, of all examples in batches.
///
/// # Errors
/// The set does not fit the model, or the device failed.
pub fn score_forced(
    model: &Model,
    adapters: impl Into<Bank>,
    data: &Dataset,
    pad: u32,
    ends: &[u32],
) -> Result<Vec<Scored>> {
    let bank = adapters.into();
    let mut scored = vec![Scored::default(); data.examples.len()];
    let mut order: Vec<usize> = (0..data.examples.len()).collect();
    order.sort_by_key(|&i| data.examples[i].ids.len());
    for ids in order.chunks(TOGETHER) {
        let examples: Vec<_> = ids.iter().map(|&i| &data.examples[i]).collect();
        let batch = Batch::new(&examples, bank.framing(), pad, model.device())?;
        let targets = batch.targets.to_u32()?;
        let rows: Vec<usize> = (0..targets.len()).filter(|&row| targets[row] != u32::MAX).collect();
        let looked = look(model, &bank, &batch, &rows, |at, logits| {
            let best = likeliest(logits);
            (best, log_sum_exp(logits) - f64::from(logits[targets[rows[at]] as usize]))
        })?;
        let length = targets.len() / ids.len();
        let mut ended = vec![false; ids.len()];
        for i in ids {
            scored[*i].right = true;
        }
        let mut before = None;
        for (&row, (best, loss)) in rows.iter().zip(looked) {
            let sample = row / length;
            if before != row.checked_sub(1) {
                ended[sample] = false;
            }
            before = Some(row);
            let score = &mut scored[ids[sample]];
            score.loss += loss;
            score.tokens += 1;
            score.right &= ended[sample] || best == targets[row];
            ended[sample] |= ends.contains(&targets[row]);
        }
    }
    Ok(scored)
}

/// What `f` makes of the logits at some rows of a batch, given with the number of the row among them.
pub(super) fn look<T: Send>(
    model: &Model,
    bank: &Bank,
    batch: &Batch,
    rows: &[usize],
    f: impl Fn(usize, &[f32]) -> T + Sync,
) -> Result<Vec<T>> {
    let logits = logits_at(model, bank, batch, rows)?;
    let width = logits.shape().last().max(1);
    let values = logits.to_f32()?;
    if let Some(bad) = values.iter().find(|v| v.is_nan()) {
        return Err(Error::refused("model", format!("gives the logit {bad}")));
    }
    Ok(values.par_chunks(width).enumerate().map(|(at, logits)| f(at, logits)).collect())
}

fn logits_at(model: &Model, bank: &Bank, batch: &Batch, rows: &[usize]) -> Result<Tensor> {
    let pass = plain_pass(bank, batch)?;
    let index: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
    no_grad(|| {
        let index = Tensor::from_u32(model.device(), &[rows.len()], &index)?;
        model.logits(&states(model, batch, &pass, false)?.gather_rows(&index)?)
    })
}

/// The first of the largest.
pub(super) fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// `ln sum exp`.
pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    most + logits.iter().map(|&v| (f64::from(v) - most).exp()).sum::<f64>().ln()
}
