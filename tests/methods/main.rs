//! Every method of the list through its adapter: derivatives, lanes, repeatability, forced choices, recompute,
//! dropout, batches, options. A new method is covered without a change here.

#[path = "../common/mod.rs"]
mod common;

mod batches;
mod choices;
mod derivatives;
mod lanes;
mod options;
mod papers;
mod recompute;
mod rig;
