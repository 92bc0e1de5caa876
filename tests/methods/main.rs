//! Every method of the list through its adapter: derivatives, lanes, repeatability, forced choices, recompute,
//! dropout, batches, options. A new method is covered there without a change; what its paper says of it is in `papers`,
//! `acceptance`, `layouts` and `learning`.

#[path = "../common/mod.rs"]
mod common;

mod acceptance;
mod batches;
mod choices;
mod cond_options;
mod derivatives;
mod lanes;
mod layouts;
mod learning;
mod options;
mod papers;
mod recompute;
mod rig;
