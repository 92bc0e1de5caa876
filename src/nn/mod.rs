//! Layers, and the hooks through which adapters join them.
//!
//! A model offers its linears in groups that read the same input, and its MLP blocks; an adapter takes their
//! place. Layers know the hooks, never a method.

mod layers;
mod param;
mod pass;

pub use crate::weight::{Format, Linear, Weight};
pub use layers::{LinearAdapter, LinearGroup, Mlp, MlpAdapter};
pub use param::Param;
pub use pass::{Choices, Kept, Pass};
