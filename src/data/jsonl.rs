//! Samples in JSONL files: one object per line, with `messages`, with `prompt` and `completion`, or with `text`.

use super::files::{MAX_LINE, not_lines, other_kind};
use super::sample::{Sample, parse};
use crate::error::Problem;
use crate::io::cannot_read;
use crate::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
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
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(Problem { line, column, what: what.into() });
        } else {
            self.more += 1;
        }
    }
    pub(super) fn result<T>(self, path: &Path, value: T) -> Result<T> {
        if self.list.is_empty() {
            Ok(value)
        } else {
            Err(Error::Data { path: path.into(), problems: self.list, more: self.more })
        }
    }
}

/// Reads the samples of a file.
///
/// # Errors
/// The file cannot be read, has no sample, or has malformed lines, all of which are listed up to [`MAX_PROBLEMS`].
pub fn read_samples(path: &Path) -> Result<Vec<Sample>> {
    let file = File::open(path).map_err(cannot_read(path))?;
    read_samples_from(path, BufReader::new(file))
}

/// Reads samples from an open file or from memory; messages use `path`.
///
/// # Errors
/// The same as for [`read_samples`].
///
/// ```
/// use mixlora::data::{Body, read_samples_from};
/// let lines = "{\"text\": \"one\"}\n{\"text\": \"two\", \"task\": \"count\"}\n";
/// let samples = read_samples_from("memory".as_ref(), std::io::Cursor::new(lines))?;
/// assert_eq!(samples[1].body, Body::Text("two".into()));
/// assert_eq!(samples[1].task.as_deref(), Some("count"));
/// # Ok::<(), mixlora::Error>(())
/// ```
pub fn read_samples_from(path: &Path, mut reader: impl BufRead + Seek) -> Result<Vec<Sample>> {
    let failure = cannot_read(path);
    let mut problems = Problems::default();
    let mut samples = Vec::new();
    let mut bytes = Vec::new();
    let mut number = 0;
    let mut first = true;
    if let Some(what) = other_kind(reader.fill_buf().map_err(&failure)?) {
        problems.add(0, 0, what);
        return problems.result(path, samples);
    }
    loop {
        bytes.clear();
        number += 1;
        let read = (&mut reader).take(MAX_LINE + 1).read_until(b'\n', &mut bytes).map_err(&failure)?;
        if read == 0 {
            break;
        }
        if read as u64 > MAX_LINE && bytes.last() != Some(&b'\n') {
            problems.add(number, 0, format!("the line is longer than {} MiB", MAX_LINE >> 20));
            break;
        }
        let skipped = if number == 1 && bytes.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let line = &bytes[skipped..];
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if first && let Some(what) = not_lines(&mut reader, line) {
            problems.add(0, 0, what);
            break;
        }
        first = false;
        match parse(number, line) {
            Ok(sample) => samples.push(sample),
            Err((column, what)) => problems.add(number, column + skipped, what),
        }
    }
    if samples.is_empty() && problems.list.is_empty() {
        let what = if number == 1 { "the file is empty" } else { "the file holds no sample" };
        problems.add(0, 0, what);
    }
    problems.result(path, samples)
}
