//! Samples from JSONL files: one object a line, with `messages`, `prompt` and `completion`, or `text`.

use super::files::{not_lines, other_kind};
use super::sample::{Sample, parse};
use crate::error::Problem;
use crate::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;

/// Longest line that is read, in bytes.
pub const MAX_LINE: u64 = 64 << 20;
/// Problems of one file that are listed; the rest is counted.
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
/// All places that cannot be used are listed at once, up to [`MAX_PROBLEMS`]. A file without samples is an error.
pub fn read_samples(path: &Path) -> Result<Vec<Sample>> {
    let file = File::open(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    read_samples_from(path, BufReader::new(file))
}

/// The same from an open file, or from memory; `path` is for messages.
///
/// # Errors
/// Those of [`read_samples`].
pub fn read_samples_from(path: &Path, mut reader: impl BufRead + Seek) -> Result<Vec<Sample>> {
    let fail = |e: std::io::Error| Error::file(path, format!("cannot be read: {e}"));
    let mut problems = Problems::default();
    let mut samples = Vec::new();
    let mut bytes = Vec::new();
    let mut number = 0;
    let mut first = true;
    if let Some(what) = other_kind(reader.fill_buf().map_err(fail)?) {
        problems.add(0, 0, what);
        return problems.result(path, samples);
    }
    loop {
        bytes.clear();
        number += 1;
        let read = (&mut reader).take(MAX_LINE + 1).read_until(b'\n', &mut bytes).map_err(fail)?;
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
