//! Learning rate by step.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the learning rate goes after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    Constant,
    Linear,
    Cosine,
}

/// Warm-up and decay over a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    pub learning_rate: f64,
    /// Steps of linear warm-up; step 0 runs at `learning_rate / warmup_steps`.
    pub warmup_steps: usize,
    pub decay: Decay,
}

impl Schedule {
    /// Refuses values that cannot work in a run of `steps`.
    pub fn check(&self, steps: usize) -> Result<()> {
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return Err(Error::config("learning_rate", self.learning_rate, "a positive number"));
        }
        if self.warmup_steps > steps {
            return Err(Error::config("warmup_steps", self.warmup_steps, format!("at most steps ({steps})")));
        }
        Ok(())
    }

    /// The rate of a step, counted from 0, in a run of `steps`.
    pub fn rate(&self, step: usize, steps: usize) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let left = (steps - self.warmup_steps).max(1) as f64;
        let done = ((step - self.warmup_steps) as f64 / left).min(1.0);
        self.learning_rate
            * match self.decay {
                Decay::Constant => 1.0,
                Decay::Linear => 1.0 - done,
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_and_decays() {
        let s = |decay| Schedule { learning_rate: 2.0, warmup_steps: 2, decay };
        let rates = |d| (0..6).map(|i| s(d).rate(i, 6)).collect::<Vec<_>>();
        assert_eq!(rates(Decay::Constant), [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
        assert_eq!(rates(Decay::Linear), [1.0, 2.0, 2.0, 1.5, 1.0, 0.5]);
        let c = rates(Decay::Cosine);
        assert!(c[2] == 2.0 && c[5] > 0.0);
        approx::assert_relative_eq!(c[4], 1.0, epsilon = 1e-12);
        assert!(s(Decay::Linear).check(1).is_err());
    }
}
