//! Routers: how units are scored, which factors are selected, and how they are gated. One file each.

mod conditional;
mod experts;
mod single;
mod tokens;

pub use conditional::{Conditional, ConditionalOptions, Gates};
pub use experts::TokenExperts;
pub use single::Single;
pub use tokens::TokenRanks;
