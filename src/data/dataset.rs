//! The examples of a file, with where they come from.

use super::Example;
use crate::error::Problem;
use crate::{Error, Result};
use std::path::Path;

/// What happened to the samples of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub samples: usize,
    /// Left out: nothing in it.
    pub empty: usize,
    /// Left out: no trained token.
    pub untrained: usize,
    /// Kept, but shortened.
    pub truncated: usize,
}

/// Examples with the labels and lines of their samples.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Dataset {
    pub examples: Vec<Example>,
    pub tasks: Vec<Option<String>>,
    pub lines: Vec<usize>,
    pub counts: Counts,
}

impl Dataset {
    /// Refuses the first example of a file with a token that an embedding of that many rows lacks.
    ///
    /// # Errors
    /// There is one; its line is named.
    pub fn check_rows(&self, path: &Path, rows: usize) -> Result<()> {
        for (example, &line) in self.examples.iter().zip(&self.lines) {
            if let Some(id) = example.ids.iter().find(|id| **id as usize >= rows) {
                let what =
                    format!("holds token {id}, which the model does not know: its embedding has {rows} rows");
                let problems = vec![Problem { line, column: 0, what }];
                return Err(Error::Data { path: path.into(), problems, more: 0 });
            }
        }
        Ok(())
    }

    /// Number of tokens of each example.
    pub fn lengths(&self) -> Vec<usize> {
        self.examples.iter().map(|e| e.ids.len()).collect()
    }
}
