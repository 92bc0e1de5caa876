//! Benchmarks: what the program `mixlora bench` measures, as a library.
//!
//! Everything is checked before it is timed. A measurement is a number of rounds; in every round all candidates run
//! once, in an order that moves on by one, so that a machine that slows down slows all of them. See
//! docs/BENCHMARKS.md.

mod compare;
mod kernels;
mod layer;
mod model;
mod ops;
mod picture;
mod report;
mod roof;
mod row;
mod stats;
mod tower;
mod train;
pub mod tune;
mod watch;

use crate::Result;
use crate::mixture::Method;
use serde_json::json;

pub use crate::device::Place;
pub use crate::engine::Costs;
pub use compare::{Change, WORSE, changes};
pub use layer::{LayerOptions, layer};
pub use model::{ModelOptions, model};
pub use ops::{DEFAULT_SHAPES, OpsOptions, ops};
pub use picture::roofline;
pub use report::{Style, parse_rows, write};
pub use roof::{Roof, SHADERS};
pub use row::{Row, Shape, Work};
pub use stats::{Summary, quantile};
pub use tower::{Pictured, TowerOptions, tower};
pub use train::{TrainingOptions, training};
pub use watch::{Candidate, Rounds, Timer, Watch, measure};

/// The task of all samples.
const TASK: &str = "task";

/// Numbers of a sample's condition.
const CONDITION: usize = 64;

/// The method with that task as the one that it knows, where it knows tasks, and that width of conditions, where it chooses
/// by them.
fn for_samples(method: &Method) -> Result<Method> {
    let mut method = method.clone();
    if method.spec().option_names().contains(&"tasks") {
        method = method.with("tasks", json!([TASK]))?;
    }
    if method.options().condition().is_some() {
        method = method.with("condition_width", CONDITION)?;
    }
    Ok(method)
}
