//! Questions with answers to choose from, as files of common tests hold them.

mod object;
mod shape;

use super::gzip::unpacked;
use super::layout::{Layout, ReadOptions};
use super::objects::{array, lines};
use super::problems::Problems;
use super::{array::Elements, files::MAX_LINE, files::other_kind, mistake::Mistake};
use crate::Result;
use crate::io::cannot_read;
use object::Object;
pub use shape::ChoiceShape;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The most answers that a question may have.
pub const MAX_CHOICES: usize = 100;

/// A question with answers to choose from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MultipleChoice {
    /// The line where it begins, from 1.
    pub line: usize,
    /// Its number in an array, from 1; none in a file of lines.
    pub element: Option<usize>,
    /// What scores are kept by: the key `task`, the subject of MMLU.
    pub task: Option<String>,
    /// What stands before the prompt; in a chat it is what the system says.
    pub system: String,
    pub prompt: String,
    /// The answers, at least two, as they stand behind the prompt but for the space before them.
    pub choices: Vec<String>,
    /// The index of the right one.
    pub answer: usize,
    /// Whether a space always stands before an answer; else only where neither side has white space.
    spaced: bool,
}

impl MultipleChoice {
    /// What follows the prompt where a choice is the answer. An assistant's turn begins with the answer itself.
    pub fn continuation(&self, choice: usize, in_chat: bool) -> String {
        let choice = self.choices.get(choice).map_or("", String::as_str);
        let apart = self.prompt.ends_with(char::is_whitespace) || choice.starts_with(char::is_whitespace);
        if in_chat || (apart && !self.spaced) { choice.into() } else { format!(" {choice}") }
    }

    /// Where it stands, for errors.
    pub fn place(&self) -> String {
        self.element.map_or_else(String::new, |n| format!("element {n}, ")) + &format!("line {}", self.line)
    }
}

/// Questions of a file, all of one shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MultipleChoices {
    pub shape: ChoiceShape,
    pub questions: Vec<MultipleChoice>,
}

/// Reads questions to choose answers of: one JSON object a line, or one array of objects, also packed by gzip. The shape is
/// known by the keys of the first object where none is given; the others must have the same.
///
/// # Errors
/// The file cannot be read, has no question, or has malformed ones, all of which are listed up to
/// [`MAX_PROBLEMS`](super::MAX_PROBLEMS).
///
/// ```
/// use mixlora::data::read_multiple_choice;
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("colours.jsonl");
/// std::fs::write(&path, r#"{"prompt": "The sky is", "choices": ["blue", "loud"], "answer": 0}"#)?;
/// let read = read_multiple_choice(&path, None)?;
/// assert_eq!((read.shape.word(), read.questions[0].continuation(1, false).as_str()), ("plain", " loud"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_multiple_choice(path: &Path, shape: Option<ChoiceShape>) -> Result<MultipleChoices> {
    let failure = cannot_read(path);
    let file = BufReader::new(File::open(path).map_err(&failure)?);
    let mut reader = unpacked(file).map_err(&failure)?;
    let mut problems = Problems::default();
    let mut shape = shape;
    let head = reader.fill_buf().map_err(&failure)?;
    let questions = if let Some(what) = other_kind(head) {
        problems.add(0, 0, what);
        Vec::new()
    } else {
        let question = |line: usize, element: Option<usize>, bytes: &[u8]| {
            let object = Object::parse(bytes)?;
            let wrong = |what: String| Mistake { row: 0, column: 1, what };
            let of = shape.map_or_else(|| object.shape(), Ok).map_err(wrong)?;
            if let Ok(own) = object.shape()
                && own != of
            {
                let what = format!(
                    "is in the shape of {}, not of {}: a file holds questions of one shape",
                    own.name(),
                    of.name()
                );
                return Err(wrong(what));
            }
            shape = Some(of);
            let question = object.question(of).map_err(wrong)?;
            Ok(MultipleChoice { line, element, ..question })
        };
        match Layout::of(path, &ReadOptions::default(), head) {
            Layout::Array => array(reader, &mut problems, question),
            _ => lines(reader, &mut problems, question),
        }
        .map_err(&failure)?
    };
    if questions.is_empty() && problems.is_empty() {
        problems.add(0, 0, "the file holds no question");
    }
    problems.result(path, MultipleChoices { shape: shape.unwrap_or(ChoiceShape::Plain), questions })
}

/// Whether the first object of a file is a question to choose answers of, by its keys.
///
/// # Errors
/// The file cannot be read.
pub fn is_multiple_choice(path: &Path) -> Result<bool> {
    let failure = cannot_read(path);
    let file = BufReader::new(File::open(path).map_err(&failure)?);
    let mut reader = unpacked(file).map_err(&failure)?;
    let head = reader.fill_buf().map_err(&failure)?;
    let first = match Layout::of(path, &ReadOptions::default(), head) {
        Layout::Array => Elements::new(reader).next().ok().flatten().map(|element| element.bytes),
        Layout::Lines => {
            let mut line = Vec::new();
            while line.trim_ascii().is_empty() {
                line.clear();
                let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(&failure)?;
                if read == 0 {
                    break;
                }
            }
            Some(line)
        }
        Layout::Table { .. } | Layout::Text => None,
    };
    let bytes = first.unwrap_or_default();
    let bytes = bytes.strip_prefix(super::layout::BYTE_ORDER_MARK).unwrap_or(&bytes);
    Ok(Object::keys(bytes).is_some_and(|keys| keys.asks_to_choose()))
}
