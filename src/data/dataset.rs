//! The examples of a file, with where they come from.

use super::Example;
use crate::error::Problem;
use crate::{Error, Result};
use std::path::Path;

/// What happened to the samples of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Counts {
    pub samples: usize,
    /// Left out: nothing in it.
    pub empty: usize,
    /// Left out: no trained token.
    pub untrained: usize,
    /// Kept, but shortened.
    pub truncated: usize,
    /// Kept; the prompt has other tokens than it would have in one text with the completion.
    pub joined: usize,
    /// Line of the first of those.
    pub first_joined: Option<usize>,
}

impl Counts {
    /// What was left out or cut, and what is odd, in a sentence; none where there is nothing to say. `what` names the
    /// samples, `max_length` is the length that they were cut to.
    pub fn note(&self, what: &str, max_length: usize) -> Option<String> {
        let line = self.first_joined.unwrap_or(0);
        let parts = [
            (self.empty, "left out (empty)".to_string()),
            (self.untrained, "left out (no trained token)".into()),
            (self.truncated, format!("cut to {max_length} tokens")),
            (
                self.joined,
                format!(
                    "with a prompt that has other tokens without its completion (the first in line {line}): put the \
                     white space at its end at the start of the completion"
                ),
            ),
        ];
        let said: Vec<String> =
            parts.iter().filter(|(n, _)| *n > 0).map(|(n, text)| format!("{n} {text}")).collect();
        (!said.is_empty()).then(|| format!("of {} {what} {}", self.samples, said.join(", ")))
    }
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
