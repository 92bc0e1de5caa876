//! The examples of a file, with where they come from.

use super::Example;

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
    /// Number of tokens of each example.
    pub fn lengths(&self) -> Vec<usize> {
        self.examples.iter().map(|e| e.ids.len()).collect()
    }
}
