//! Exact match in one pass: the wanted answer is given token by token, and the likeliest token is looked at in each place.

use super::losses::{plain_pass, states};
use crate::adapter::Bank;
use crate::data::{Batch, Dataset, Example};
use crate::model::Model;
use crate::{Error, Result, Tensor, no_grad};
use rayon::prelude::*;

/// Examples of one pass.
const TOGETHER: usize = 8;
/// Rows whose logits are there at once: with a large vocabulary each has a megabyte.
const ROWS: usize = 256;

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
    let examples: Vec<&Example> = data.examples.iter().collect();
    let looked = look_at_trained(model, &bank, &examples, pad, TOGETHER, |at, logits| {
        (likeliest(logits) == at.target, log_sum_exp(logits) - f64::from(logits[at.target as usize]))
    })?;
    let score = |(example, looked): (&&Example, Vec<(bool, f64)>)| {
        let mut score = Scored { right: true, ..Scored::default() };
        let mut ended = false;
        for (place, (best, loss)) in trained(example).zip(looked) {
            // Another answer begins where the token before is not trained.
            ended &= example.trained[place - 1];
            score.loss += loss;
            score.tokens += 1;
            score.right &= ended || best;
            ended |= ends.contains(&example.ids[place]);
        }
        score
    };
    Ok(examples.iter().zip(looked).map(score).collect())
}

/// The places of the trained tokens of an example.
fn trained(example: &Example) -> impl Iterator<Item = usize> {
    (1..example.ids.len()).filter(|&place| example.trained[place])
}

/// A trained token of one of several examples.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trained {
    /// The index of the example.
    pub example: usize,
    /// Its number among the trained tokens of the example, from 0.
    #[cfg_attr(not(feature = "tokenizer"), expect(dead_code, reason = "answers to choose from need text"))]
    pub number: usize,
    pub target: u32,
}

/// What `f` makes of the logits before each trained token of examples, which go through the model in batches of one length
/// or nearly so, `together` at once.
pub(super) fn look_at_trained<T: Send>(
    model: &Model,
    bank: &Bank,
    examples: &[&Example],
    pad: u32,
    together: usize,
    f: impl Fn(Trained, &[f32]) -> T + Sync,
) -> Result<Vec<Vec<T>>> {
    let front = bank.framing().rows_in_front();
    let mut looked: Vec<Vec<T>> = examples.iter().map(|_| Vec::new()).collect();
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&i| examples[i].ids.len());
    for ids in order.chunks(together.max(1)) {
        let chosen: Vec<_> = ids.iter().map(|&i| examples[i]).collect();
        let batch = Batch::new(&chosen, bank.framing(), pad, model.device())?;
        let length = batch.ids.shape().last();
        let mut rows = Vec::new();
        let mut places = Vec::new();
        for (row, &example) in ids.iter().enumerate() {
            for (number, place) in trained(examples[example]).enumerate() {
                rows.push(row * length + front + place - 1);
                places.push(Trained { example, number, target: examples[example].ids[place] });
            }
        }
        let made = look(model, bank, &batch, &rows, |at, logits| f(places[at], logits))?;
        places.iter().zip(made).for_each(|(place, made)| looked[place.example].push(made));
    }
    Ok(looked)
}

/// What `f` makes of the logits at some rows of a batch, given with the number of the row among them.
pub(super) fn look<T: Send>(
    model: &Model,
    bank: &Bank,
    batch: &Batch,
    rows: &[usize],
    f: impl Fn(usize, &[f32]) -> T + Sync,
) -> Result<Vec<T>> {
    let pass = plain_pass(bank, batch)?;
    let states = no_grad(|| states(model, batch, &pass, false))?;
    let mut made = Vec::with_capacity(rows.len());
    for some in rows.chunks(ROWS) {
        let index: Vec<u32> = some.iter().map(|&row| row as u32).collect();
        let index = Tensor::from_u32(model.device(), &[some.len()], &index)?;
        let logits = no_grad(|| model.logits(&states.gather_rows(&index)?))?;
        let width = logits.shape().last().max(1);
        let values = logits.to_f32()?;
        if let Some(bad) = values.iter().find(|v| v.is_nan()) {
            return Err(Error::refused("model", format!("gives the logit {bad}")));
        }
        let before = made.len();
        made.par_extend(values.par_chunks(width).enumerate().map(|(at, logits)| f(before + at, logits)));
    }
    Ok(made)
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
