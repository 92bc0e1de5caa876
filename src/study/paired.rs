//! Means of any figures of questions, such as differences of losses, with intervals by the bootstrap.

use super::bootstrap::{CONFIDENCE, Draws, Estimate, check_resamples};
use super::stats::interval;
use crate::{Error, Result, Stream};
use rayon::prelude::*;

/// The figure of one question: an amount, and how much it counts. Of an accuracy that is 0 or 1 and 1, of a loss the sum over
/// tokens and their number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    pub amount: f64,
    pub weight: f64,
}

impl Figure {
    /// A figure that counts once.
    pub fn once(amount: f64) -> Self {
        Figure { amount, weight: 1.0 }
    }

    /// The difference to the figure of another for the same question; none where they do not count the same.
    pub fn less(self, other: Self) -> Option<Self> {
        let amount = self.amount - other.amount;
        (self.weight == other.weight).then_some(Figure { amount, weight: self.weight })
    }
}

/// The mean over groups of `sum amount / sum weight` over the questions of a group, with its interval by the bootstrap: each
/// resample draws of every group as many questions as it has, with replacement; groups are not drawn. Figures that are
/// differences keep the pairs of a question together.
///
/// The same figures and the same stream give the same interval, on every machine.
///
/// # Errors
/// There is no group, or one without a question or weight, or there are too many resamples.
///
/// ```
/// use mixlora::{Stream, study::{Figure, paired_bootstrap}};
/// // Losses that fell by 0 to 0.9 nats, with a standard deviation of 0.287, on 100 questions.
/// let fell: Vec<Figure> = (0..100).map(|i| Figure::once(f64::from(i % 10) / 10.0)).collect();
/// let found = paired_bootstrap(&[fell], 10_000, Stream::new(1))?;
/// assert!((found.mean - 0.45).abs() < 1e-12);
/// assert!((found.low - 0.394).abs() < 0.005 && (found.high - 0.506).abs() < 0.005);
/// # Ok::<(), mixlora::Error>(())
/// ```
pub fn paired_bootstrap(groups: &[Vec<Figure>], resamples: usize, stream: Stream) -> Result<Estimate> {
    check_resamples(resamples)?;
    let Some(mean) = mean_of_groups(groups) else {
        return Err(Error::refused("questions", "there are none, or some count nothing"));
    };
    let resample = |number: usize| {
        let mut draws = Draws::of(stream.fork(number as u64));
        let drawn = |group: &Vec<Figure>| ratio((0..group.len()).map(|_| group[draws.below(group.len())]));
        groups.iter().map(drawn).sum::<f64>() / groups.len() as f64
    };
    let drawn: Vec<f64> = (0..resamples).into_par_iter().map(resample).collect();
    match interval(&drawn, CONFIDENCE) {
        Some([low, high]) => Ok(Estimate { mean, low, high }),
        None => Err(Error::refused("resamples", "there are none")),
    }
}

/// The mean over groups; none without any, or where a group counts nothing.
pub fn mean_of_groups(groups: &[Vec<Figure>]) -> Option<f64> {
    let group = |group: &Vec<Figure>| {
        let counts = group.iter().all(|figure| figure.weight > 0.0) && !group.is_empty();
        counts.then(|| ratio(group.iter().copied()))
    };
    let ratios = groups.iter().map(group).collect::<Option<Vec<f64>>>()?;
    super::stats::mean(&ratios)
}

fn ratio(figures: impl Iterator<Item = Figure>) -> f64 {
    let (amount, weight) = figures.fold((0.0, 0.0), |(a, w), f| (a + f.amount, w + f.weight));
    amount / weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_have_the_interval_of_all_draws() {
        // Losses of five samples with different numbers of tokens, and a second group that never varies.
        let group: Vec<Figure> = [(2.0, 1.0), (9.0, 4.0), (-1.0, 2.0), (30.0, 5.0), (4.0, 8.0)]
            .map(|(amount, weight)| Figure { amount, weight })
            .to_vec();
        let fixed = vec![Figure::once(3.0); 7];
        let mut drawn: Vec<f64> =
            (0..5usize.pow(5)).map(|draw| ratio((0..5).map(|at| group[draw / 5usize.pow(at) % 5]))).collect();
        drawn.sort_by(f64::total_cmp);
        let [low, high] = interval(&drawn, CONFIDENCE).unwrap();
        let found = paired_bootstrap(&[group.clone(), fixed], 40_000, Stream::new(3)).unwrap();
        assert!((found.mean - (44.0 / 20.0 + 3.0) / 2.0).abs() < 1e-12);
        let near = |found: f64, wanted: f64| (found - (wanted + 3.0) / 2.0).abs() < 0.03;
        assert!(near(found.low, low) && near(found.high, high), "{found:?}, wanted of {low} to {high}");
        let of = |seed| paired_bootstrap(std::slice::from_ref(&group), 1000, Stream::new(seed)).unwrap();
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
    }

    #[test]
    fn pairs_must_count_the_same() {
        let a = Figure { amount: 5.0, weight: 2.0 };
        assert_eq!(a.less(Figure { amount: 1.0, weight: 2.0 }), Some(Figure { amount: 4.0, weight: 2.0 }));
        assert_eq!(a.less(Figure::once(1.0)), None);
    }

    #[test]
    fn what_cannot_be_drawn_from_is_refused() {
        let one = vec![Figure::once(1.0)];
        let refused = |groups: &[Vec<Figure>], resamples| {
            paired_bootstrap(groups, resamples, Stream::new(0)).unwrap_err().to_string()
        };
        assert!(refused(&[], 10).contains("there are none"));
        assert!(refused(&[one.clone(), vec![]], 10).contains("there are none"));
        assert!(refused(&[vec![Figure { amount: 1.0, weight: 0.0 }]], 10).contains("count nothing"));
        assert!(refused(std::slice::from_ref(&one), 0).contains("resamples"));
        assert!(refused(&[one], usize::MAX).contains("resamples"));
    }
}
