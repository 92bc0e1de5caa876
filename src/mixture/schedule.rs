//! Schedules: pure functions of the step, for each layer, and of what was learned.

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

/// A temperature that goes from one value to another by equal factors.
///
/// ```
/// use mixlora::mixture::TemperatureSchedule;
/// let schedule = TemperatureSchedule { start: 4.0, target: 1.0, until: 2 };
/// assert_eq!([0, 1, 2, 9].map(|step| schedule.at(step)), [4.0, 2.0, 1.0, 1.0]);
/// assert_eq!(TemperatureSchedule::constant(0.5).at(7), 0.5);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TemperatureSchedule {
    /// At step 0; positive.
    pub start: f32,
    /// From step `until` on; positive.
    pub target: f32,
    pub until: usize,
}

impl TemperatureSchedule {
    /// The same temperature at all steps.
    pub fn constant(temperature: f32) -> Self {
        TemperatureSchedule { start: temperature, target: temperature, until: 0 }
    }
    /// `start (target / start)^(step / until)`, and the target from step `until` on.
    pub fn at(&self, step: usize) -> f32 {
        if step >= self.until {
            return self.target;
        }
        self.start * (self.target / self.start).powf(step as f32 / self.until as f32)
    }
}

/// When a stage of a stream gives way to the next (ScaleZero, arXiv:2509.07945): once it has solved its share of the tasks that
/// were unsolved when it began, or has had all its steps.
///
/// ```
/// use mixlora::mixture::StageRule;
/// let rule = StageRule { least: 10, most: 100 };
/// // Seven unsolved tasks and three stages left: three are a share.
/// assert_eq!([2, 3].map(|newly| rule.is_over(50, newly, 7, 3)), [false, true]);
/// assert!(!rule.is_over(9, 7, 7, 1) && rule.is_over(100, 0, 7, 1));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageRule {
    /// Steps that a stage has at least.
    pub least: usize,
    /// Steps that it has at most.
    pub most: usize,
}

impl StageRule {
    /// Whether a stage is over after `step` steps: `newly` solved tasks of those `unsolved` at its start, with so many stages
    /// left, this one included.
    pub fn is_over(&self, step: usize, newly: usize, unsolved: usize, stages_left: usize) -> bool {
        step >= self.most || (step >= self.least && newly * stages_left >= unsolved)
    }
}
