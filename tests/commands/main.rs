//! Commands as they are typed, and the documents about them.

#[path = "../common/mod.rs"]
mod common;

mod analyse_cli;
mod answers;
mod bench_cli;
mod cli;
mod data_cli;
mod documents;
mod eval_answers;
mod eval_choices;
mod eval_compare;
mod examples;
mod plot_cli;
mod quickstart;
mod shell_cli;
mod study;
mod train_cli;
mod tune_cli;
mod use_cli;
