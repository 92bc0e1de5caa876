//! Keeping factors in use: a load-balance loss, and balancing biases that need no gradient.

use crate::nn::{Param, Pass};
use crate::ops::routing_load::{balance, routing_load};
use crate::{Result, Tensor};
use std::sync::Mutex;

/// `E * sum_e load_e * mean_prob_e` over the valid tokens: least at an even load. Gradient through the
/// probabilities only (Fedus et al. 2021; load sums to k as in MixLoRA, arXiv:2404.15159).
pub(super) fn load_balance_loss(logits: &Tensor, idx: &Tensor, pass: &Pass) -> Result<Tensor> {
    let tokens = logits.shape().rows();
    let factors = logits.shape().last();
    let p = logits.softmax()?;
    let (p, load, n) = match &pass.valid {
        Some((w, n)) => (p.mul(w)?, routing_load(idx, factors, Some(w))?, *n),
        None => (p, routing_load(idx, factors, None)?, tokens),
    };
    let n = n.max(1) as f32;
    let load = load.reshape(&[factors])?;
    p.sum_rows()?.mul(&load)?.sum()?.scale(factors as f32 / (n * n))
}

/// A bias per factor that is moved towards an even load after each optimizer step.
pub(super) struct LoadBias {
    /// `[L, E]`, not trained.
    pub bias: Param,
    rate: f32,
    load: Mutex<Option<Tensor>>,
}

impl LoadBias {
    pub fn new(bias: Param, rate: f32) -> Self {
        LoadBias { bias, rate, load: Mutex::default() }
    }

    /// Counts the choices of a training pass, once: a pass that replays choices is a recomputation.
    pub fn count(&self, idx: &Tensor, pass: &Pass) -> Result<()> {
        if !pass.counts() {
            return Ok(());
        }
        let factors = self.bias.value().shape().last();
        let new = routing_load(idx, factors, pass.valid.as_ref().map(|v| &v.0))?;
        let mut load = self.load.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &mut *load {
            Some(sum) => sum.add_assign(&new)?,
            empty => *empty = Some(new),
        }
        Ok(())
    }

    /// `bias += rate * sign(mean(load) - load)`, and the count starts again.
    pub fn step(&self) -> Result<()> {
        match self.load.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() {
            Some(load) => self.bias.update(|bias| balance(bias, &load, self.rate)),
            None => Ok(()),
        }
    }
}
