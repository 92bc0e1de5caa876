//! Faults that people met with files, texts, data and runs of their own: each is a test that holds the right outcome,
//! beside the neighbours of its kind.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

#[path = "../common/mod.rs"]
mod common;

mod data;
#[cfg(feature = "gpu")]
mod devices;
mod models;
mod place;
mod runs;
mod text;
