//! Intervals by the bootstrap.

use super::stats::{Answers, interval, mean, mean_of_tasks};
use crate::{Error, Result, Stream, threefry2x32};
use serde::Serialize;

/// How often the bootstrap draws, if nothing else is asked for.
pub const RESAMPLES: usize = 10_000;
/// More draws than anyone can wait for.
const MOST_RESAMPLES: usize = 10_000_000;
/// The share of resampled means that an interval holds.
pub const CONFIDENCE: f64 = 0.95;
/// Probability at the ends of a distribution that is left out.
const TAIL: f64 = 1e-18;

/// Which questions a resample draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Questions {
    /// Anew for every seed that is drawn.
    #[default]
    OfEachSeed,
    /// Once for all seeds of a resample, as all seeds were asked the same questions. Differences that come from the
    /// choice of questions then do not shrink with more seeds: intervals are wider.
    OfAllSeeds,
}

/// A mean with the interval that holds 95 % of the resampled means.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

/// The mean of `1/S sum_s 1/T sum_t 1/n_t sum_q d[s][t][q]` over seeds, tasks and questions with its interval by the
/// bootstrap: each resample draws S of the S seeds with replacement, and of each task n_t of the n_t questions with
/// replacement; tasks are not drawn. Figures that are differences of two rows keep the pairs of answers together: the
/// same seed and the same question for both.
///
/// The same figures and the same stream give the same interval, on every machine.
///
/// ```
/// use mixlora::{Stream, study::{Questions, bootstrap}};
/// // Two seeds, one task: of 100 questions 20 are right for the first row alone and 10 for the second alone.
/// let task: Vec<i8> = (0..100).map(|i| if i < 20 { 1 } else if i < 30 { -1 } else { 0 }).collect();
/// let seeds = vec![vec![task.clone()], vec![task]];
/// let found = bootstrap(&seeds, Questions::OfEachSeed, 10_000, Stream::new(1))?;
/// // sqrt((0.3 - 0.1^2) / 200) = 0.038 is the standard error.
/// assert!((found.mean - 0.1).abs() < 1e-12);
/// assert!((found.low - 0.025).abs() < 0.01 && (found.high - 0.175).abs() < 0.01);
/// # Ok::<(), mixlora::Error>(())
/// ```
pub fn bootstrap(
    seeds: &[Answers],
    questions: Questions,
    resamples: usize,
    stream: Stream,
) -> Result<Estimate> {
    check_resamples(resamples)?;
    let sizes = |seed: &Answers| seed.iter().map(Vec::len).collect::<Vec<usize>>();
    let Some(first) = seeds.first().map(sizes) else {
        return Err(Error::refused("seeds", "there are none to draw from"));
    };
    if first.is_empty() || first.contains(&0) {
        return Err(Error::refused("questions", "each seed needs a task, and each task a question"));
    }
    if let Some(other) = seeds.iter().map(sizes).find(|other| *other != first) {
        return Err(Error::shape("bootstrap", format!("{first:?} questions"), format!("{other:?}")));
    }
    let means: Option<Vec<f64>> = seeds.iter().map(mean_of_tasks).collect();
    let drawn = match questions {
        Questions::OfEachSeed => nested(seeds, resamples, stream),
        Questions::OfAllSeeds => crossed(seeds, resamples, stream),
    };
    let (Some(mean), Some([low, high])) = (means.as_deref().and_then(mean), interval(&drawn, CONFIDENCE))
    else {
        return Err(Error::refused("questions", "there are none"));
    };
    Ok(Estimate { mean, low, high })
}

pub(super) fn check_resamples(resamples: usize) -> Result<()> {
    if (1..=MOST_RESAMPLES).contains(&resamples) {
        return Ok(());
    }
    Err(Error::config("resamples", resamples, format!("1 to {MOST_RESAMPLES}")))
}

/// Means of resamples with questions drawn for each seed. A sum over drawn questions depends on how many of them have
/// which figure alone, so one draw from its distribution stands for those of all questions of a task.
fn nested(seeds: &[Answers], resamples: usize, stream: Stream) -> Vec<f64> {
    let sums: Vec<Vec<Sums>> =
        seeds.iter().map(|tasks| tasks.iter().map(|task| Sums::of(task)).collect()).collect();
    let resample = |number: usize| {
        let mut draws = Draws::of(stream.fork(number as u64));
        let mut total = 0.0;
        for _ in seeds {
            let tasks = &sums[draws.below(seeds.len())];
            total += tasks.iter().map(|task| task.mean(draws.unit())).sum::<f64>() / tasks.len() as f64;
        }
        total / seeds.len() as f64
    };
    (0..resamples).map(resample).collect()
}

/// Means of resamples with the same questions for all seeds.
fn crossed(seeds: &[Answers], resamples: usize, stream: Stream) -> Vec<f64> {
    let tasks = seeds[0].len();
    let mut figures = Vec::new();
    let mut resample = |number: usize| {
        let mut draws = Draws::of(stream.fork(number as u64));
        let mut times = vec![0i32; seeds.len()];
        seeds.iter().for_each(|_| times[draws.below(seeds.len())] += 1);
        let mut total = 0.0;
        for task in 0..tasks {
            figures.clear();
            figures.resize(seeds[0][task].len(), 0i32);
            for (seed, times) in seeds.iter().zip(&times).filter(|(_, times)| **times > 0) {
                figures
                    .iter_mut()
                    .zip(&seed[task])
                    .for_each(|(sum, &figure)| *sum += times * i32::from(figure));
            }
            let sum: i64 = (0..figures.len()).map(|_| i64::from(figures[draws.below(figures.len())])).sum();
            total += sum as f64 / figures.len() as f64;
        }
        total / (tasks * seeds.len()) as f64
    };
    (0..resamples).map(&mut resample).collect()
}

/// The distribution of the sum of n figures drawn with replacement from n.
struct Sums {
    first: i64,
    /// For each sum from `first` on the probability of it and those below.
    up_to: Vec<f64>,
    questions: f64,
}

impl Sums {
    /// The n-th power of the distribution of one draw under convolution, by squaring. Ends of negligible probability
    /// are left out, so that widths grow with the root of n.
    fn of(figures: &[i8]) -> Self {
        let least = figures.iter().copied().min().unwrap_or(0);
        let most = figures.iter().copied().max().unwrap_or(0);
        let mut one = vec![0.0; (i64::from(most) - i64::from(least) + 1) as usize];
        let part = 1.0 / figures.len().max(1) as f64;
        figures.iter().for_each(|figure| one[(i64::from(*figure) - i64::from(least)) as usize] += part);
        let mut power = (i64::from(least), one);
        let mut all = (0i64, vec![1.0]);
        let mut left = figures.len();
        while left > 0 {
            if left % 2 == 1 {
                all = sum_of(&all, &power);
            }
            left /= 2;
            if left > 0 {
                power = sum_of(&power, &power);
            }
        }
        let total: f64 = all.1.iter().sum();
        let mut below = 0.0;
        let up_to = all.1.iter().map(|probability| {
            below += probability;
            below / total
        });
        Sums { first: all.0, up_to: up_to.collect(), questions: figures.len() as f64 }
    }

    /// The mean figure at a quantile of the distribution.
    fn mean(&self, share: f64) -> f64 {
        let at = self.up_to.partition_point(|up_to| *up_to <= share).min(self.up_to.len() - 1);
        (self.first + at as i64) as f64 / self.questions
    }
}

/// The distribution of the sum of two independent numbers, each given by its least value and probabilities from there on.
fn sum_of(a: &(i64, Vec<f64>), b: &(i64, Vec<f64>)) -> (i64, Vec<f64>) {
    let mut both = vec![0.0; a.1.len() + b.1.len() - 1];
    for (i, p) in a.1.iter().enumerate() {
        both[i..].iter_mut().zip(&b.1).for_each(|(sum, q)| *sum += p * q);
    }
    let negligible = |probabilities: &mut dyn Iterator<Item = &f64>| {
        let mut sum = 0.0;
        let small = |probability: &&f64| {
            sum += **probability;
            sum < TAIL
        };
        probabilities.take_while(small).count()
    };
    let before = negligible(&mut both.iter());
    let behind = negligible(&mut both.iter().rev());
    both.truncate(both.len() - behind);
    both.drain(..before);
    (a.0 + b.0 + before as i64, both)
}

/// Random numbers one after the other.
pub(super) struct Draws {
    key: [u32; 2],
    block: u32,
    kept: Option<u32>,
}

impl Draws {
    pub(super) fn of(stream: Stream) -> Self {
        Draws { key: stream.words(), block: 0, kept: None }
    }

    fn words(&mut self) -> [u32; 2] {
        let words = threefry2x32(self.key, [self.block, 2]);
        self.block = self.block.wrapping_add(1);
        words
    }

    /// Uniform in [0, 1) with 53 bits.
    fn unit(&mut self) -> f64 {
        let [high, low] = self.words();
        ((u64::from(high) << 21) | u64::from(low >> 11)) as f64 / (1u64 << 53) as f64
    }

    /// One of the numbers below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        let word = self.kept.take().unwrap_or_else(|| {
            let [now, later] = self.words();
            self.kept = Some(later);
            now
        });
        ((u64::from(word) * end as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A task with so many questions of each figure.
    fn task(ones: usize, zeros: usize, minus: usize) -> Vec<i8> {
        [vec![1; ones], vec![0; zeros], vec![-1; minus]].concat()
    }

    fn both() -> [Questions; 2] {
        [Questions::OfEachSeed, Questions::OfAllSeeds]
    }

    fn close(found: Estimate, low: f64, high: f64, tolerance: f64) {
        let near = (found.low - low).abs() < tolerance && (found.high - high).abs() < tolerance;
        assert!(near, "{found:?}, wanted {low} to {high}");
    }

    #[test]
    fn the_distribution_of_a_sum_is_that_of_all_draws() {
        let figures = [1i8, 0, 0, -1, 1];
        // All 5^5 draws of five with replacement.
        let mut count = [0usize; 11];
        for draw in 0..5usize.pow(5) {
            let sum: i64 = (0..5).map(|at| i64::from(figures[draw / 5usize.pow(at) % 5])).sum();
            count[(sum + 5) as usize] += 1;
        }
        let sums = Sums::of(&figures);
        assert_eq!((sums.first, sums.up_to.len()), (-5, 11));
        let mut below = 0;
        for (up_to, count) in sums.up_to.iter().zip(count) {
            below += count;
            assert!((up_to - below as f64 / 3125.0).abs() < 1e-14);
        }
        assert_eq!(Sums::of(&[1, 1, 1]).mean(0.3), 1.0);
    }

    #[test]
    fn ends_of_long_distributions_are_left_out() {
        let sums = Sums::of(&task(30_000, 40_000, 30_000));
        // 9 standard deviations to each side hold all but 1e-18.
        let deviation = (100_000.0f64 * 0.6).sqrt();
        assert!((sums.up_to.len() as f64) < 20.0 * deviation, "{}", sums.up_to.len());
        assert!((sums.mean(0.975) * 1e5 / deviation - 1.96).abs() < 0.01);
    }

    #[test]
    fn one_seed_of_many_questions_has_the_normal_interval() {
        let seeds = [vec![task(240, 1110, 150)]];
        let error = ((0.26 - 0.06f64 * 0.06) / 1500.0).sqrt();
        for questions in both() {
            let found = bootstrap(&seeds, questions, 20_000, Stream::new(4)).unwrap();
            assert_eq!(found.mean, 0.06);
            close(found, 0.06 - 1.96 * error, 0.06 + 1.96 * error, 0.06 * error);
        }
    }

    #[test]
    fn tasks_count_the_same_whatever_their_size() {
        let seeds = [vec![task(900, 100, 0), task(10, 30, 0)]];
        let error = 0.5 * (0.09 / 1000.0 + 0.1875 / 40.0f64).sqrt();
        for questions in both() {
            let found = bootstrap(&seeds, questions, 20_000, Stream::new(4)).unwrap();
            assert!((found.mean - 0.575).abs() < 1e-12);
            close(found, 0.575 - 1.96 * error, 0.575 + 1.96 * error, 0.1 * error);
        }
    }

    #[test]
    fn small_samples_have_the_limits_of_the_binomial() {
        // Quantiles by scipy: of 20 draws at 0.65 those of 2.5 and 97.5 % are 9 and 17.
        let questions_alone = [vec![task(13, 7, 0)]];
        // Seeds that are right or wrong throughout: of 5 draws at 0.4 the quantiles are 0 and 4.
        let seed = |right: i8| vec![vec![right; 30]];
        let seeds_alone = [seed(1), seed(0), seed(0), seed(1), seed(0)];
        for questions in both() {
            let found = bootstrap(&questions_alone, questions, RESAMPLES, Stream::new(9)).unwrap();
            close(found, 0.45, 0.85, 1e-12);
            let found = bootstrap(&seeds_alone, questions, RESAMPLES, Stream::new(9)).unwrap();
            close(found, 0.0, 0.8, 1e-12);
        }
    }

    /// Quantiles of the exact distributions, which numpy convolved on their lattice of 1/1200.

    #[test]
    fn intervals_are_those_of_the_exact_distribution() {
        let figure = |s: usize, t: usize, q: usize| {
            i8::from((q * 7 + s * 13 + t * 5) % 11 < 3) - i8::from((q * 3 + s + t).is_multiple_of(7))
        };
        let task = |s, (t, n): (usize, usize)| (0..n).map(|q| figure(s, t, q)).collect();
        let seeds: Vec<Answers> =
            (0..3).map(|s| [(0, 40), (1, 25)].map(|sized| task(s, sized)).to_vec()).collect();
        let found = bootstrap(&seeds, Questions::OfEachSeed, 50_000, Stream::new(2)).unwrap();
        assert!((found.mean - 0.133_333_333_333).abs() < 1e-9);
        close(found, 0.054_17, 0.213_33, 0.001_3);
        let found = bootstrap(&seeds, Questions::OfAllSeeds, 50_000, Stream::new(2)).unwrap();
        close(found, 0.035, 0.234_17, 0.001_3);
    }

    #[test]
    fn equal_seeds_narrow_the_interval_only_where_each_draws_questions() {
        let seeds = vec![vec![task(240, 1110, 150)]; 4];
        let width = |questions| {
            let found = bootstrap(&seeds, questions, 20_000, Stream::new(4)).unwrap();
            found.high - found.low
        };
        let normal = 2.0 * 1.96 * ((0.26 - 0.06f64 * 0.06) / 1500.0).sqrt();
        assert!((width(Questions::OfEachSeed) / normal - 0.5).abs() < 0.02);
        assert!((width(Questions::OfAllSeeds) / normal - 1.0).abs() < 0.04);
    }

    #[test]
    fn the_stream_alone_decides() {
        let seeds = [vec![task(30, 50, 20)], vec![task(25, 55, 20)]];
        for questions in both() {
            let found = |seed| bootstrap(&seeds, questions, 1000, Stream::new(seed)).unwrap();
            assert_eq!(found(1), found(1));
            assert_ne!(found(1), found(2));
        }
    }

    #[test]
    fn what_cannot_be_drawn_from_is_refused() {
        let refused = |seeds: &[Answers], resamples| {
            let result = bootstrap(seeds, Questions::OfEachSeed, resamples, Stream::new(0));
            result.unwrap_err().to_string()
        };
        assert!(refused(&[], 10).contains("none to draw from"));
        assert!(refused(&[vec![]], 10).contains("needs a task"));
        assert!(refused(&[vec![vec![]]], 10).contains("needs a task"));
        assert!(refused(&[vec![vec![1]], vec![vec![1, 0]]], 10).contains("[1] questions"));
        assert!(refused(&[vec![vec![1]]], 0).contains("resamples"));
        assert!(refused(&[vec![vec![1]]], usize::MAX).contains("resamples"));
    }
}
