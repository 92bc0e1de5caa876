//! Learning rate by step.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the learning rate goes after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    Constant,
    /// A straight line down to the least rate.
    Linear,
    /// Half a cosine down to the least rate.
    Cosine,
    /// Warm-up, stable, decay: constant up to the last share of the steps, then a straight line down to the least rate.
    Wsd,
    /// Equal cycles, in each of which the rate falls by half a cosine and then is back at the top (SGDR, Loshchilov and
    /// Hutter 2017).
    CosineRestarts,
}

impl Decay {
    /// Their names in settings.
    pub const WORDS: [&str; 5] = ["constant", "linear", "cosine", "wsd", "cosine_restarts"];
}

/// Warm-up and decay over a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    pub learning_rate: f64,
    /// Steps of linear warm-up; step 0 runs at `learning_rate / warmup_steps`.
    pub warmup_steps: usize,
    pub decay: Decay,
    /// What every decay falls to: reached one step behind the last, which would be the first of the next run.
    #[serde(default)]
    pub min_learning_rate: f64,
    /// Share of a run's steps in which [`Decay::Wsd`] falls.
    #[serde(default = "decay_share")]
    pub decay_share: f64,
    /// Cycles of [`Decay::CosineRestarts`].
    #[serde(default = "restarts")]
    pub restarts: usize,
}

/// The share of the steps in which the rate falls, where nothing else is said.
pub(super) fn decay_share() -> f64 {
    0.2
}

/// The cycles, where nothing else is said.
pub(super) fn restarts() -> usize {
    4
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule {
            learning_rate: 1e-3,
            warmup_steps: 0,
            decay: Decay::Cosine,
            min_learning_rate: 0.0,
            decay_share: decay_share(),
            restarts: restarts(),
        }
    }
}

impl Schedule {
    /// Refuses values that cannot work in a run of `steps`.
    pub fn check(&self, steps: usize) -> Result<()> {
        self.check_rates()?;
        if self.warmup_steps > steps {
            return Err(Error::config("warmup_steps", self.warmup_steps, format!("at most steps ({steps})")));
        }
        let left = steps - self.warmup_steps;
        if self.decay == Decay::CosineRestarts && self.restarts > left.max(1) {
            let expected = format!("at most the steps behind the warm-up ({left})");
            return Err(Error::config("restarts", self.restarts, expected));
        }
        Ok(())
    }

    /// The same for what does not depend on the length of the run.
    pub(super) fn check_rates(&self) -> Result<()> {
        let rate = self.learning_rate;
        if !(rate.is_finite() && rate > 0.0) {
            return Err(Error::config("learning_rate", rate, "a positive number"));
        }
        let least = self.min_learning_rate;
        if !(0.0..=rate).contains(&least) {
            let expected = format!("in 0..=learning_rate ({rate})");
            return Err(Error::config("min_learning_rate", least, expected));
        }
        if !(self.decay_share > 0.0 && self.decay_share <= 1.0) {
            return Err(Error::config("decay_share", self.decay_share, "above 0 and at most 1"));
        }
        if self.restarts == 0 {
            return Err(Error::config("restarts", 0, "at least 1"));
        }
        Ok(())
    }

    /// The rate of a step, counted from 0, in a run of `steps`.
    pub fn rate(&self, step: usize, steps: usize) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let left = steps.saturating_sub(self.warmup_steps).max(1);
        let done = step - self.warmup_steps;
        let share = (done as f64 / left as f64).min(1.0);
        let height = match self.decay {
            Decay::Constant => return self.learning_rate,
            Decay::Linear => 1.0 - share,
            Decay::Cosine => half_cosine(share),
            Decay::Wsd => {
                let falling = ((self.decay_share * steps as f64).round() as usize).clamp(1, left);
                let fallen = done.saturating_sub(left - falling);
                1.0 - (fallen as f64 / falling as f64).min(1.0)
            }
            Decay::CosineRestarts if done >= left => 0.0,
            // In whole numbers: a cycle begins at the top exactly.
            Decay::CosineRestarts => {
                let place = done as u128 * self.restarts as u128 % left as u128;
                half_cosine(place as f64 / left as f64)
            }
        };
        self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * height
    }
}

/// From 1 at 0 to 0 at 1.
fn half_cosine(share: f64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * share).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule { learning_rate: 2.0, warmup_steps: 2, decay, ..Schedule::default() }
    }

    fn rates(schedule: Schedule, steps: usize) -> Vec<f64> {
        (0..steps).map(|step| schedule.rate(step, steps)).collect()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((found - expected).abs() < 1e-15, "step {i}: {found} {expected}");
        }
    }

    #[test]
    fn warms_up_and_decays() {
        let six = |decay| rates(schedule(decay), 6);
        assert_eq!(six(Decay::Constant), [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
        assert_eq!(six(Decay::Linear), [1.0, 2.0, 2.0, 1.5, 1.0, 0.5]);
        let c = six(Decay::Cosine);
        assert!(c[2] == 2.0 && c[5] > 0.0);
        approx::assert_relative_eq!(c[4], 1.0, epsilon = 1e-12);
        assert!(schedule(Decay::Linear).check(1).is_err());
    }

    /// Runs that were begun before there was a least rate go on with the same bits.
    #[test]
    fn without_a_least_rate_the_bits_are_the_old_ones() {
        let steps = 997;
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
            let now = Schedule { learning_rate: 3.7e-4, warmup_steps: 30, decay, ..Schedule::default() };
            for step in 30..steps {
                let done = ((step - 30) as f64 / (steps - 30) as f64).min(1.0);
                let before = 3.7e-4
                    * match decay {
                        Decay::Constant => 1.0,
                        Decay::Linear => 1.0 - done,
                        _ => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
                    };
                assert_eq!(now.rate(step, steps).to_bits(), before.to_bits(), "{decay:?} {step}");
            }
        }
    }

    #[test]
    fn every_decay_ends_at_the_least_rate() {
        let with = |decay| Schedule { min_learning_rate: 1.0, ..schedule(decay) };
        assert_eq!(rates(with(Decay::Linear), 6), [1.0, 2.0, 2.0, 1.75, 1.5, 1.25]);
        for decay in [Decay::Linear, Decay::Cosine, Decay::Wsd, Decay::CosineRestarts] {
            let schedule = with(decay);
            schedule.check(6).unwrap();
            assert_eq!(schedule.rate(6, 6), 1.0, "{decay:?}");
            assert_eq!(schedule.rate(9, 6), 1.0, "{decay:?} behind the end");
        }
        assert_eq!(with(Decay::Constant).rate(6, 6), 2.0, "constant has no end to fall to");
    }

    #[test]
    fn the_last_share_of_the_steps_falls() {
        // Ten steps, of which two warm up and the last four fall: 2, 1.5, 1, 0.5.
        let wsd = Schedule { decay_share: 0.4, ..schedule(Decay::Wsd) };
        assert_eq!(rates(wsd, 10), [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.0, 0.5]);
        // A share that reaches into the warm-up begins behind it: it is the linear one then.
        let all = Schedule { decay_share: 1.0, ..schedule(Decay::Wsd) };
        assert_eq!(rates(all, 6), rates(schedule(Decay::Linear), 6));
        // A share of less than a step is one step.
        let little = Schedule { decay_share: 1e-9, min_learning_rate: 1.0, ..schedule(Decay::Wsd) };
        assert_eq!(rates(little, 4), [1.0, 2.0, 2.0, 2.0]);
        assert_eq!(little.rate(4, 4), 1.0);
    }

    /// As transformers' `get_wsd_schedule(num_warmup_steps=0, num_decay_steps=5, num_training_steps=20,
    /// decay_type="linear", min_lr_ratio=0.1)` at a rate of 1e-3: `min + (1 - min) (1 - progress)` over the last steps.
    #[test]
    fn wsd_is_that_of_transformers() {
        let wsd = Schedule {
            learning_rate: 1e-3,
            warmup_steps: 0,
            decay: Decay::Wsd,
            min_learning_rate: 1e-4,
            decay_share: 0.25,
            ..Schedule::default()
        };
        assert_close(&rates(wsd, 20)[13..], &[1e-3, 1e-3, 1e-3, 8.2e-4, 6.4e-4, 4.6e-4, 2.8e-4]);
    }

    /// As torch's `CosineAnnealingWarmRestarts(T_0=5, T_mult=1, eta_min=1e-4)` at a rate of 1e-3, three cycles:
    /// `eta_min + (rate - eta_min) (1 + cos(pi T_cur / T_0)) / 2`.
    #[test]
    fn restarts_are_those_of_torch() {
        let restarts = Schedule {
            learning_rate: 1e-3,
            warmup_steps: 0,
            decay: Decay::CosineRestarts,
            min_learning_rate: 1e-4,
            restarts: 3,
            ..Schedule::default()
        };
        let found = rates(restarts, 15);
        let cycle =
            [1e-3, 9.140576474687263e-4, 6.890576474687264e-4, 4.109423525312737e-4, 1.8594235253127368e-4];
        assert_close(&found, &[cycle; 3].concat());
        // Cycles that are no whole numbers of steps: each begins at the top where it begins at a step.
        let uneven = Schedule { restarts: 7, ..restarts };
        let tops: Vec<usize> = (0..49).filter(|&step| uneven.rate(step, 49) == 1e-3).collect();
        assert_eq!(tops, [0, 7, 14, 21, 28, 35, 42]);
        let one = Schedule { restarts: 1, ..restarts };
        assert_close(&rates(one, 50), &rates(Schedule { decay: Decay::Cosine, ..one }, 50));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let fine = schedule(Decay::CosineRestarts);
        fine.check(6).unwrap();
        for (wrong, expected) in [
            (
                Schedule { min_learning_rate: 2.5, ..fine },
                "min_learning_rate: is 2.5, must be in 0..=learning_rate (2)",
            ),
            (Schedule { min_learning_rate: -1.0, ..fine }, "min_learning_rate: is -1"),
            (Schedule { min_learning_rate: f64::NAN, ..fine }, "min_learning_rate: is NaN"),
            (Schedule { decay_share: 0.0, ..fine }, "decay_share: is 0, must be above 0 and at most 1"),
            (Schedule { decay_share: f64::NAN, ..fine }, "decay_share"),
            (Schedule { restarts: 0, ..fine }, "restarts: is 0, must be at least 1"),
            (
                Schedule { restarts: 5, ..fine },
                "restarts: is 5, must be at most the steps behind the warm-up (4)",
            ),
        ] {
            let error = wrong.check(6).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        Schedule { restarts: 5, decay: Decay::Linear, ..fine }.check(6).unwrap();
    }

    #[test]
    fn names_are_those_of_settings() {
        let all = [Decay::Constant, Decay::Linear, Decay::Cosine, Decay::Wsd, Decay::CosineRestarts];
        let names = all.map(|decay| serde_json::to_value(decay).unwrap());
        assert_eq!(names.each_ref().map(|name| name.as_str().unwrap()), Decay::WORDS);
    }
}
