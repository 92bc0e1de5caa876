//! Commands as they are typed, and the documents about them.

#[path = "../common/mod.rs"]
mod common;

mod analyse;
mod answers;
mod bench;
mod data;
mod documents;
mod eval_answers;
mod eval_choices;
mod eval_compare;
mod examples;
mod fit;
mod merged;
mod plot;
mod program;
mod quickstart;
mod shells;
mod study;
mod train;
mod tune;
mod using;
