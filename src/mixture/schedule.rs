//! Schedules: pure functions of the step, for each layer.

/// A number of chosen experts that falls during training (progressive sparsification, Sigma-MoE-Tiny, arXiv:2512.16248).
///
/// ```
/// use mixlora::mixture::TopKSchedule;
/// let schedule = TopKSchedule { start: 8, target: 2, until: 3, linear: true };
/// assert_eq!([0, 1, 2, 3, 9].map(|step| schedule.k(step)), [8, 6, 4, 2, 2]);
/// assert_eq!(schedule.rescale(2), 2.0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopKSchedule {
    /// At step 0.
    pub start: usize,
    /// From step `until` on.
    pub target: usize,
    pub until: usize,
    /// In steps of one on the way, `start - floor((start - target) step / until)`; else at once at `until`.
    pub linear: bool,
}

impl TopKSchedule {
    /// Experts that a token gets at a step.
    pub fn k(&self, step: usize) -> usize {
        if step >= self.until {
            return self.target;
        }
        if !self.linear {
            return self.start;
        }
        // In integers, so that no rounding moves a step.
        let [start, target] = [self.start as i128, self.target as i128];
        (start - ((start - target) * step as i128).div_euclid(self.until as i128)) as usize
    }

    /// `start / k`: keeps the size of an update whose gates are all 1.
    pub fn rescale(&self, step: usize) -> f32 {
        self.start as f32 / self.k(step).max(1) as f32
    }
}
