//! A study: methods, options and learning rates on one data set with several seeds, and what that shows.
//!
//! A [`Cell`] is one training run with its answers. [`Report`] is what cells say together: the best learning rate of each
//! row, what it reaches there, and how far rows differ, with intervals.

mod bootstrap;
mod cell;
mod report;
mod stats;

pub use bootstrap::{CONFIDENCE, Estimate, Questions, RESAMPLES, bootstrap};
pub use cell::{Cell, FORMAT, Forgotten, Measured, Part, TaskAnswers};
pub use report::{
    AtBest, Cost, Description, Difference, Efficiency, FINAL, ForgottenMean, Mark, Measurements, PartResult,
    PartSize, Picture, RankCorrelation, Rate, Report, Row, TUNING, TaskResult, TaskSize, Tuning,
};
pub use stats::{Answers, answers, deviation, differences, interval, mean, mean_of_tasks, spearman};
