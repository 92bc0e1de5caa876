//! A figure for every pair of tasks.

use serde::Serialize;

/// `scores[i][j]` of tasks i and j; none where it is not defined.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scores(pub Vec<Vec<Option<f64>>>);

impl Scores {
    /// The scores of so many tasks by their numbers.
    pub(super) fn of(tasks: usize, cell: impl Fn(usize, usize) -> Option<f64>) -> Self {
        Scores((0..tasks).map(|i| (0..tasks).map(|j| cell(i, j)).collect()).collect())
    }

    /// Cell by cell the mean of those that are defined.
    pub fn mean<'a>(all: impl Iterator<Item = &'a Scores> + Clone) -> Self {
        let tasks = all.clone().next().map_or(0, |first| first.0.len());
        Scores::of(tasks, |i, j| mean(all.clone().filter_map(|scores| scores.0[i][j])))
    }

    /// The defined cells between different tasks.
    pub fn between(&self) -> impl Iterator<Item = f64> {
        let rows = self.0.iter().enumerate();
        let others = |(i, row): (usize, &Vec<Option<f64>>)| {
            let cells = row.iter().enumerate().filter(|(j, _)| *j != i);
            cells.filter_map(|(_, cell)| *cell).collect::<Vec<f64>>()
        };
        rows.flat_map(others)
    }

    /// How many of the cells between different tasks are below zero.
    pub fn negative(&self) -> usize {
        self.between().filter(|cell| *cell < 0.0).count()
    }

    /// How far below zero the cells between different tasks are in the mean, those above zero counted as zero.
    pub fn harm(&self) -> Option<f64> {
        mean(self.between().map(|cell| (-cell).max(0.0)))
    }

    /// The mean of the defined cells between different tasks.
    pub fn mean_between(&self) -> Option<f64> {
        mean(self.between())
    }
}

/// The mean of values; none of none.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut count = 0;
    let mut sum = 0.0;
    for value in values {
        count += 1;
        sum += value;
    }
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_leave_out_what_is_not_defined() {
        let one = Scores(vec![vec![Some(1.0), Some(-0.5)], vec![None, Some(1.0)]]);
        let two = Scores(vec![vec![Some(1.0), Some(0.25)], vec![None, Some(1.0)]]);
        assert_eq!((one.negative(), one.mean_between(), one.harm()), (1, Some(-0.5), Some(0.5)));
        assert_eq!((two.negative(), two.harm()), (0, Some(0.0)));
        let both = Scores::mean([&one, &two].into_iter());
        assert_eq!(both.0, [[Some(1.0), Some(-0.125)], [None, Some(1.0)]]);
        assert_eq!(Scores(vec![vec![Some(1.0)]]).mean_between(), None);
    }
}
