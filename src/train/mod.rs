//! Training, step by step: nothing here prints, and the caller keeps control between steps.

mod checkpoint;
mod config;
mod curve;
mod folder;
mod load;
mod metrics;
mod optim;
mod schedule;
mod session;

pub use checkpoint::State;
pub use config::{DeviceOptions, RunConfig, TextOptions, TrainOptions, nearest, parse_bytes};
pub use folder::RunFolder;
pub use load::RouterLoad;
pub use metrics::{MetricsLog, loss_curve, read_losses};
pub use optim::Optimizer;
pub use schedule::{Decay, Schedule};
pub use session::{Session, StepReport, StepTimes, TrainConfig};
