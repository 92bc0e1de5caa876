//! From text to batches.

mod batch;

pub use batch::{Batch, Example};
