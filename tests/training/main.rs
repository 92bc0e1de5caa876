//! Models, text, data and runs, through the library.

#[path = "../common/mod.rs"]
mod common;

mod analyse;
mod banks;
mod beside;
mod data;
mod experts;
mod front;
mod frozen_rows;
mod hooks;
mod model;
mod prune;
mod runs;
mod stages;
mod tape;
mod text;
