//! Routers: how units are scored, which factors are selected, and how they are gated. One file each.

mod conditional;
mod dense;
mod experts;
mod loras;
mod single;
mod tokens;

pub use conditional::{Conditional, ConditionalOptions, Gates};
pub use dense::{DenseExperts, GateRule, Gated, Scored, dense_memory};
pub(in crate::mixture) use experts::one_hot;
pub use experts::{ExpertChoice, ExpertLosses, TokenExperts};
pub use loras::{ChoiceLoss, Chosen, TokenLoras};
pub use single::Single;
pub use tokens::TokenRanks;
