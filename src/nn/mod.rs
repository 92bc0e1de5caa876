//! Layers, and the hooks through which adapters join them.
//!
//! A model offers its linears in groups that read the same input, its MLP blocks, its whole blocks, and the moment
//! before its first layer; an adapter takes their place, or several together do ([`Member`]). Adapters travel with the
//! pass: a model is never changed, and threads share one. Layers know the hooks, never a method.

mod aux_loss;
mod bank;
mod hooks;
mod layers;
mod param;
mod pass;
mod rows;

pub use crate::weight::{Format, Linear, Weight};
pub(crate) use aux_loss::Aux;
pub use aux_loss::JointLoss;
pub use bank::Member;
pub(crate) use bank::Part;
pub use hooks::{BeforeForward, BlockAdapter, LinearAdapter, MlpAdapter, Prompts, SiteAdapter, SiteAdapters};
pub use layers::{Activation, LinearGroup, Mlp};
pub use param::Param;
pub use pass::{Choices, Kept, Labels, Pass};
pub(crate) use rows::Rows;
