//! Keeping factors in use by balancing biases, which need no gradient.

use crate::nn::{Param, Pass};
use crate::ops::routing_load::{balance, routing_load};
use crate::{Result, Tensor};
use std::sync::Mutex;

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
