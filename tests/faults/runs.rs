//! Runs, paths and arguments.
