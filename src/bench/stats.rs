//! Medians and quantiles of samples.

use serde::{Deserialize, Serialize};

/// The value below which the share `share` of the samples lies, interpolated linearly; NaN without samples.
///
/// ```
/// assert_eq!(mixlora::bench::quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
/// ```
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = share.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * at.fract()
}

/// A summary of the samples of one quantity.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The number of samples.
    pub n: usize,
    /// The middle sample.
    pub median: f64,
    /// The value below which a fifth of the samples lies.
    pub p20: f64,
    /// The value above which a fifth of the samples lies.
    pub p80: f64,
    /// The smallest sample.
    pub min: f64,
    /// The standard deviation; 0 for one sample.
    pub std: f64,
}

impl Summary {
    /// Summarises at least one sample.
    pub fn of(samples: &[f64]) -> Self {
        let count = samples.len();
        let mean = samples.iter().sum::<f64>() / count.max(1) as f64;
        let squares = samples.iter().map(|sample| (sample - mean) * (sample - mean)).sum::<f64>();
        Summary {
            n: count,
            median: quantile(samples, 0.5),
            p20: quantile(samples, 0.2),
            p80: quantile(samples, 0.8),
            min: quantile(samples, 0.0),
            std: (squares / count.saturating_sub(1).max(1) as f64).sqrt(),
        }
    }

    /// Summarises the quotients of samples of the same round.
    pub fn of_ratios(over: &[f64], under: &[f64]) -> Self {
        Self::of(&over.iter().zip(under).map(|(over, under)| over / under).collect::<Vec<_>>())
    }

    /// Converts the samples to another unit.
    pub fn times(self, factor: f64) -> Self {
        Summary {
            n: self.n,
            median: self.median * factor,
            p20: self.p20 * factor,
            p80: self.p80 * factor,
            min: self.min * factor,
            std: self.std * factor,
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
        let summary = Summary::of(&[1.0, 2.0, 3.0]);
        assert_eq!((summary.n, summary.median, summary.min, summary.std), (3, 2.0, 1.0, 1.0));
        assert_eq!(summary.times(10.0).median, 20.0);
        assert_eq!(Summary::of(&[2.0]).std, 0.0);
        assert_eq!(Summary::of_ratios(&[2.0, 9.0, 4.0], &[1.0, 3.0, 4.0]).median, 2.0);
    }
}
