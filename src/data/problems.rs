//! What is wrong with a file, up to a limit.

use crate::error::Problem;
use crate::{Error, Result};
use std::path::Path;

/// The largest number of listed problems of a file; further ones are counted.
pub const MAX_PROBLEMS: usize = 20;

/// Collects problems up to the limit.
#[derive(Default)]
pub(super) struct Problems {
    list: Vec<Problem>,
    more: usize,
}

impl Problems {
    pub(super) fn add(&mut self, line: usize, column: usize, what: impl Into<String>) {
        self.push(Problem { line, column, what: what.into() });
    }
    pub(super) fn push(&mut self, problem: Problem) {
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(problem);
        } else {
            self.more += 1;
        }
    }
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
    pub(super) fn result<T>(self, path: &Path, value: T) -> Result<T> {
        if self.list.is_empty() {
            Ok(value)
        } else {
            Err(Error::Data { path: path.into(), problems: self.list, more: self.more })
        }
    }
}
