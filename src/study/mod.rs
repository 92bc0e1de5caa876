//! A study: methods, options and learning rates on one data set with several seeds, and what that shows.
//!
//! A [`Study`] says what is compared. A [`Cell`] is one training run with its answers, a small file that can be checked in;
//! `StudyRun` trains those that are not there (feature `tokenizer`). [`Report`] is what cells say together: the best learning rate of each row,
//! what it reaches there, and how far rows differ, with intervals.

mod bootstrap;
mod cell;
mod file;
mod folder;
#[cfg(feature = "tokenizer")]
mod measure;
mod paired;
mod report;
#[cfg(feature = "tokenizer")]
mod run;
mod stats;
#[cfg(feature = "tokenizer")]
mod train;

pub use bootstrap::{CONFIDENCE, Estimate, Questions, RESAMPLES, bootstrap};
pub use cell::{Cell, FORMAT, Measured, Part, TaskAnswers};
pub use file::{Place, Study, StudyRow};
pub use folder::StudyFolder;
pub use paired::{Figure, mean_of_groups, paired_bootstrap};
pub use report::{
    AtBest, Cost, Description, Difference, Efficiency, FINAL, ForgottenMean, Mark, Measurements, PartResult,
    PartSize, Picture, RankCorrelation, Rate, Report, Row, TUNING, TaskResult, TaskSize, Tuning,
};
#[cfg(feature = "tokenizer")]
pub use run::{Progress, StudyObserver, StudyRun};
pub use stats::{Answers, answers, deviation, differences, interval, mean, mean_of_tasks, spearman};
