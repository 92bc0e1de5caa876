//! What routers and ops share: routing units, the choices of a router, and which pool rows a row of the input uses.

mod by_entry;
pub(crate) mod sample;
pub(crate) mod selection;
pub(crate) mod slots;

pub(crate) use by_entry::QUAD;
pub(crate) use selection::Lists;
pub use selection::Selection;
pub use slots::{Dropout, Units};
pub(crate) use slots::{Slots, drop_values};
