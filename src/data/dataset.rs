//! The encoded examples of a file with their origin.

use super::{Condition, Example};
use crate::error::Problem;
use crate::{Error, Result};
use std::path::Path;

/// Counts of the samples of a file by how they were encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Counts {
    /// All samples.
    pub samples: usize,
    /// Omitted: no content.
    pub empty: usize,
    /// Omitted: no trained token.
    pub untrained: usize,
    /// Kept, but shortened.
    pub truncated: usize,
    /// Kept, but tokenising prompt and completion as one text would give the prompt other tokens.
    pub joined: usize,
    /// Line of the first such sample.
    pub first_joined: Option<usize>,
    /// Omitted: the answer and the pictures are longer than the largest length.
    pub too_long: usize,
    /// Omitted: a picture cannot be read.
    pub bad_pictures: usize,
    /// Line of the first such sample.
    pub first_bad_picture: Option<usize>,
}

impl Counts {
    /// A sentence about samples that were omitted, cut or odd, if there are any. `what` names the samples, and
    /// `max_length` is the length to which they were cut.
    pub fn note(&self, what: &str, max_length: usize) -> Option<String> {
        let line = self.first_joined.unwrap_or(0);
        let parts = [
            (self.empty, "left out (empty)".to_string()),
            (self.untrained, "left out (no trained token)".into()),
            (
                self.bad_pictures,
                format!(
                    "left out (a picture cannot be read; the first in line {})",
                    self.first_bad_picture.unwrap_or(0)
                ),
            ),
            (
                self.too_long,
                format!("left out (the answer and the pictures have more than {max_length} tokens)"),
            ),
            (self.truncated, format!("cut to {max_length} tokens")),
            (
                self.joined,
                format!(
                    "with a prompt that has other tokens without its completion (the first in line {line}): put the \
                     white space at its end at the start of the completion"
                ),
            ),
        ];
        let said: Vec<String> = parts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, text)| format!("{count} {text}"))
            .collect();
        (!said.is_empty()).then(|| format!("of {} {what} {}", self.samples, said.join(", ")))
    }
}

/// Examples with the labels and lines of their samples.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Dataset {
    pub examples: Vec<Example>,
    /// The label of each example's sample.
    pub tasks: Vec<Option<String>>,
    /// The condition of each example's sample.
    pub conditions: Vec<Option<Condition>>,
    /// The line of each example's sample, from 1.
    pub lines: Vec<usize>,
    pub counts: Counts,
}

impl Dataset {
    /// Checks that an embedding with `rows` rows has a row for every token of every example.
    ///
    /// # Errors
    /// An example has a token without a row; the error names its line.
    pub fn check_rows(&self, path: &Path, rows: usize) -> Result<()> {
        for (example, &line) in self.examples.iter().zip(&self.lines) {
            // What stands in a picture's place is not looked up.
            let of_picture = |at: usize| example.pictures.iter().any(|place| place.span.contains(&at));
            let unknown = |&(at, id): &(usize, &u32)| *id as usize >= rows && !of_picture(at);
            if let Some((_, id)) = example.ids.iter().enumerate().find(unknown) {
                let what =
                    format!("holds token {id}, which the model does not know: its embedding has {rows} rows");
                let problems = vec![Problem { line, column: 0, what }];
                return Err(Error::Data { path: path.into(), problems, more: 0 });
            }
        }
        Ok(())
    }

    /// The number of tokens of each example.
    pub fn lengths(&self) -> Vec<usize> {
        self.examples.iter().map(|example| example.ids.len()).collect()
    }
}
