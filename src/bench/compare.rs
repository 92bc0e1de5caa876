//! Comparison of two reports.

use super::Row;

/// The factor by which a median may exceed the old one before it is a regression.
pub const WORSE: f64 = 1.1;

/// A row of a new report with its counterpart in an old one.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    pub new: &'a Row,
    pub old: &'a Row,
}

impl Change<'_> {
    /// The new median over the old one.
    pub fn ratio(&self) -> f64 {
        self.new.median_us / self.old.median_us
    }

    /// Tests whether the median is more than 10 % worse, with each median outside the other one's band from p20 to p80.
    pub fn is_regression(&self) -> bool {
        let outside = |median: f64, row: &Row| median < row.p20_us || median > row.p80_us;
        self.ratio() > WORSE && outside(self.new.median_us, self.old) && outside(self.old.median_us, self.new)
    }
}

/// The rows of both reports with the same work, adapter and timer.
pub fn changes<'a>(new: &'a [Row], old: &'a [Row]) -> Vec<Change<'a>> {
    let change = |new: &'a Row| old.iter().find(|old| old.key() == new.key()).map(|old| Change { new, old });
    new.iter().filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::bench::{Place, Timer, Work};

    fn row(op: &str, [p20, median, p80]: [f64; 3]) -> Row {
        let work = Work { op: op.into(), ..Work::default() };
        let row = Row::new(&Place::of(&Device::cpu()), work, Timer::Wall, &[1.0]);
        Row { p20_us: p20, median_us: median, p80_us: p80, ..row }
    }

    #[test]
    fn a_regression_is_large_and_outside_both_bands() {
        let regression = |new, old| {
            let new = row("a", new);
            let old = row("a", old);
            Change { new: &new, old: &old }.is_regression()
        };
        assert!(regression([118.0, 120.0, 121.0], [99.0, 100.0, 101.0]));
        assert!(!regression([108.0, 109.0, 110.0], [99.0, 100.0, 101.0]), "9 % are allowed");
        assert!(!regression([118.0, 120.0, 121.0], [90.0, 100.0, 130.0]), "within the old band");
        assert!(
            !regression([95.0, 120.0, 121.0], [99.0, 100.0, 101.0]),
            "the old one is within the new band"
        );
        assert!(!regression([49.0, 50.0, 51.0], [99.0, 100.0, 101.0]), "faster");
    }

    #[test]
    fn only_the_same_work_is_compared() {
        let new = [row("a", [1.0; 3]), row("b", [1.0; 3])];
        let old = [row("b", [2.0; 3]), row("c", [1.0; 3])];
        let found = changes(&new, &old);
        assert_eq!((found.len(), found[0].new.work.op.as_str(), found[0].ratio()), (1, "b", 0.5));
    }
}
