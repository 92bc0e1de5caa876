//! Means, spreads, quantiles and rank correlation.

use super::cell::{Part, TaskAnswers};
use crate::bench::quantile;
use crate::{Error, Result};

/// The mean `1/n sum x`; none without values.
///
/// ```
/// assert_eq!(mixlora::study::mean(&[1.0, 2.0, 6.0]), Some(3.0));
/// ```
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The standard deviation `sqrt(sum (x - mean)^2 / (n - 1))`; none of fewer than two values.
///
/// ```
/// assert_eq!(mixlora::study::deviation(&[1.0, 2.0, 3.0]), Some(1.0));
/// assert_eq!(mixlora::study::deviation(&[1.0]), None);
/// ```
pub fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// The middle interval that holds the share `share` of the samples: from the quantile `(1 - share) / 2` to the quantile
/// `(1 + share) / 2`, interpolated linearly; none without samples.
///
/// ```
/// let samples: Vec<f64> = (0..=1000).map(f64::from).collect();
/// assert_eq!(mixlora::study::interval(&samples, 0.5), Some([250.0, 750.0]));
/// ```
pub fn interval(samples: &[f64], share: f64) -> Option<[f64; 2]> {
    let end = |sign: f64| quantile(samples, 0.5 + sign * 0.5 * share);
    (!samples.is_empty()).then(|| [end(-1.0), end(1.0)])
}

/// Spearman's rank correlation: Pearson's correlation of the ranks, where equal values share the mean of their ranks;
/// none of lists that differ in length, of fewer than two pairs, where all values of a list are equal, or where one is
/// not a number.
///
/// ```
/// assert_eq!(mixlora::study::spearman(&[1.0, 2.0, 3.0], &[5.0, 6.0, 60.0]), Some(1.0));
/// assert_eq!(mixlora::study::spearman(&[1.0, 2.0], &[5.0, 5.0]), None);
/// ```
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() != b.len() || a.iter().chain(b).any(|value| value.is_nan()) {
        return None;
    }
    let a = ranks(a);
    let b = ranks(b);
    // Ranks from 1 to n, ties included, have this mean.
    let middle = (a.len() + 1) as f64 / 2.0;
    let product =
        |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| (a - middle) * (b - middle)).sum() };
    let norm = (product(&a, &a) * product(&b, &b)).sqrt();
    (norm > 0.0).then(|| product(&a, &b) / norm)
}

/// Ranks from 1; equal values have the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = first as f64 + (equal.len() + 1) as f64 / 2.0;
        equal.iter().for_each(|&at| ranks[at] = rank);
        first += equal.len();
    }
    ranks
}

/// Figures of one seed, by task and question: 1 where the answer is right, else 0; of two rows the difference.
pub type Answers = Vec<Vec<i8>>;

/// What a cell answered in a part, task by task in the order of their names.
pub fn answers(part: &Part) -> Answers {
    part.tasks.values().map(right).collect()
}

/// What the first answered less what the second did: 1 where only the first is right, -1 where only the second is. Both
/// must have been asked the same.
pub fn differences(of: &Part, from: &Part) -> Result<Answers> {
    if !same_questions(of, from) {
        return Err(Error::refused("cells", "two that are compared were not asked the same questions"));
    }
    let task = |(of, from): (Vec<i8>, Vec<i8>)| of.iter().zip(from).map(|(of, from)| of - from).collect();
    Ok(answers(of).into_iter().zip(answers(from)).map(task).collect())
}

/// Whether two parts have the same tasks with as many questions each.
pub(super) fn same_questions(a: &Part, b: &Part) -> bool {
    let size = |part: &Part| -> Vec<(String, usize)> {
        part.tasks.iter().map(|(name, task)| (name.clone(), task.right.len())).collect()
    };
    size(a) == size(b)
}

fn right(task: &TaskAnswers) -> Vec<i8> {
    task.right.bytes().map(|sign| i8::from(sign == b'1')).collect()
}

/// The mean over tasks of the mean over questions: every task counts the same. None without tasks or questions.
pub fn mean_of_tasks(answers: &Answers) -> Option<f64> {
    let task = |task: &Vec<i8>| mean(&task.iter().map(|&figure| f64::from(figure)).collect::<Vec<_>>());
    mean(&answers.iter().map(task).collect::<Option<Vec<f64>>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_and_ranks_are_those_of_numpy_and_scipy() {
        let found = deviation(&[0.61, 0.58, 0.66, 0.7]).unwrap();
        assert!((found - 0.053_150_729_063_673_25).abs() < 1e-15);
        let a = [1.0, 2.0, 2.0, 3.0, 5.0, 5.0, 5.0, 8.0];
        let b = [2.0, 1.0, 4.0, 4.0, 3.0, 9.0, 9.0, 7.0];
        assert!((spearman(&a, &b).unwrap() - 0.689_560_714_965_216_5).abs() < 1e-15);
        let found = spearman(&[0.3, 0.1, 0.9, 0.5, 0.5], &[5.0, 3.0, 1.0, 4.0, 2.0]).unwrap();
        assert!((found + 0.615_587_011_251_092_5).abs() < 1e-15);
        assert_eq!(spearman(&[1.0, 2.0, 3.0, 4.0], &[4.0, 3.0, 2.0, 1.0]), Some(-1.0));
        assert_eq!(ranks(&[7.0, 1.0, 7.0, 0.5]), [3.5, 2.0, 3.5, 1.0]);
    }

    #[test]
    fn what_is_not_defined_is_none() {
        assert_eq!((mean(&[]), deviation(&[]), interval(&[], 0.95)), (None, None, None));
        assert_eq!(spearman(&[], &[]), None);
        assert_eq!(spearman(&[1.0], &[1.0]), None);
        assert_eq!(spearman(&[1.0, 2.0], &[1.0]), None);
        assert_eq!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]), None);
        assert_eq!(mean_of_tasks(&vec![vec![1], vec![]]), None);
    }

    #[test]
    fn pairs_are_of_the_same_questions() {
        let part = |right: &str| {
            let task = TaskAnswers { loss: 0.0, right: right.into() };
            Part { loss: 0.0, tasks: [("a".to_string(), task)].into() }
        };
        assert_eq!(differences(&part("110"), &part("011")).unwrap(), [[1, 0, -1]]);
        assert!(differences(&part("110"), &part("11")).is_err());
    }
}
