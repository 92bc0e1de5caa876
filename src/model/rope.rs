//! Rotations of a model: which values of a head turn, and by which frequencies.

use crate::ops::rope::{Frequencies, Llama3, Pairs, RopeScaling};
use crate::{Error, Result};

/// One rotation of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Frequency k of n is `theta^(-k/n)`.
    pub theta: f64,
    /// Values of a head that turn: the first ones, an even number.
    pub dims: usize,
    pub pairs: Pairs,
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// Refuses what cannot be.
    pub(super) fn check(&self, head_dim: usize) -> Result<()> {
        if !(self.theta.is_finite() && self.theta > 0.0) {
            return Err(Error::config("rope_theta", self.theta, "a positive number"));
        }
        if self.dims == 0 || !self.dims.is_multiple_of(2) || self.dims > head_dim {
            let what =
                format!("turns {} values of a head, must be an even number up to {head_dim}", self.dims);
            return Err(Error::refused("partial_rotary_factor", what));
        }
        self.frequencies(1).map(drop)
    }

    /// The original context, where the factors change with the length of the sequence.
    pub fn border(&self) -> Option<usize> {
        match &self.scaling {
            RopeScaling::LongRope(long) => Some(long.original_max_position_embeddings),
            _ => None,
        }
    }

    /// Rotary frequencies, scaled where the model asks for it, for sequences of `length` positions.
    ///
    /// # Errors
    /// A number of the scaling cannot be.
    pub fn frequencies(&self, length: usize) -> Result<Frequencies> {
        self.scaling.frequencies(self.dims, self.theta, length)
    }

    /// Llama 3's scaling that gives these factors, if one does. Only the ratios of three of its numbers can be told;
    /// the old context is taken as 8192, as Llama 3.1 has it.
    pub(super) fn llama3_of(&self, factors: &[f64]) -> Option<Llama3> {
        let factor = factors.iter().fold(1.0f64, |a, &b| a.max(b));
        let original = 8192.0;
        let plain = RopeScaling::Default.frequencies(self.dims, self.theta, 1).ok()?.per_pair;
        // Blended frequencies lie on a line: smooth = (turns - low) / (high - low).
        let blended = plain.iter().zip(factors).filter_map(|(f, &by)| {
            let smooth = (1.0 / by - 1.0 / factor) / (1.0 - 1.0 / factor);
            (smooth > 1e-6 && smooth < 1.0 - 1e-6).then_some((original * f / std::f64::consts::TAU, smooth))
        });
        let blended: Vec<(f64, f64)> = blended.collect();
        let first = blended.first()?;
        let last = blended.last()?;
        let slope = (first.1 - last.1) / (first.0 - last.0);
        let low = last.0 - last.1 / slope;
        // A number of turns that was written with few digits is taken at its word.
        let tidy = |v: f64| if (v - v.round()).abs() < 1e-3 { v.round() } else { v };
        let found = Llama3 {
            factor,
            low_freq_factor: tidy(low),
            high_freq_factor: tidy(low + 1.0 / slope),
            original_max_position_embeddings: original as usize,
        };
        let scaled = RopeScaling::Llama3(found).frequencies(self.dims, self.theta, 1).ok()?.per_pair;
        let same = |((f, scaled), &by): ((&f64, &f64), &f64)| (f / scaled / by - 1.0).abs() < 1e-5;
        (slope > 0.0 && plain.iter().zip(&scaled).zip(factors).all(same)).then_some(found)
    }
}
