//! Medians and quantiles of samples.

use serde::{Deserialize, Serialize};

/// The value below which a share `q` of the samples lies, between neighbours by a straight line; NaN without samples.
pub fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * at.fract()
}

/// Samples of one quantity.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many samples there are.
    pub n: usize,
    /// The middle one.
    pub median: f64,
    /// A fifth of the samples is below.
    pub p20: f64,
    /// A fifth of the samples is above.
    pub p80: f64,
    /// The smallest.
    pub min: f64,
    /// Standard deviation; 0 for one sample.
    pub std: f64,
}

impl Summary {
    /// Of at least one sample.
    pub fn of(samples: &[f64]) -> Self {
        let n = samples.len();
        let mean = samples.iter().sum::<f64>() / n.max(1) as f64;
        let squares = samples.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>();
        Summary {
            n,
            median: quantile(samples, 0.5),
            p20: quantile(samples, 0.2),
            p80: quantile(samples, 0.8),
            min: quantile(samples, 0.0),
            std: (squares / n.saturating_sub(1).max(1) as f64).sqrt(),
        }
    }

    /// Of the quotients of samples that were taken in the same round.
    pub fn of_ratios(over: &[f64], under: &[f64]) -> Self {
        Self::of(&over.iter().zip(under).map(|(a, b)| a / b).collect::<Vec<_>>())
    }

    /// The same samples in another unit.
    pub fn times(self, s: f64) -> Self {
        Summary {
            n: self.n,
            median: self.median * s,
            p20: self.p20 * s,
            p80: self.p80 * s,
            min: self.min * s,
            std: self.std * s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let samples = [4.0, 1.0, 3.0, 2.0, 5.0];
        assert_eq!(quantile(&samples, 0.5), 3.0);
        assert_eq!(quantile(&samples, 0.2), 1.8);
        assert_eq!(quantile(&samples, 0.8), 4.2);
        assert_eq!(quantile(&samples, 0.0), 1.0);
        assert_eq!(quantile(&samples, 1.0), 5.0);
        assert_eq!(quantile(&[7.0], 0.2), 7.0);
        assert_eq!(quantile(&[1.0, 2.0], 0.5), 1.5);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn summaries_keep_their_unit() {
        let s = Summary::of(&[1.0, 2.0, 3.0]);
        assert_eq!((s.n, s.median, s.min, s.std), (3, 2.0, 1.0, 1.0));
        assert_eq!(s.times(10.0).median, 20.0);
        assert_eq!(Summary::of(&[2.0]).std, 0.0);
        assert_eq!(Summary::of_ratios(&[2.0, 9.0, 4.0], &[1.0, 3.0, 4.0]).median, 2.0);
    }
}
