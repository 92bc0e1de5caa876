//! Training, step by step: nothing here prints, and the caller keeps control between steps.

mod optim;
mod schedule;
mod session;

pub use optim::Optimizer;
pub use schedule::{Decay, Schedule};
pub use session::{Session, StepReport, TrainConfig};
