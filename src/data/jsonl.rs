//! Samples in files of lines or of one array: objects with `messages`, with `prompt` and `completion`, or with `text`.

use super::array::{Broken, Elements};
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
        self.push(Problem { line, column, what: what.into() });
    }
    pub(super) fn push(&mut self, problem: Problem) {
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(problem);
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

/// Reads the samples of a file. Paths of pictures are of its folder.
///
/// # Errors
/// The file cannot be read, has no sample, or has malformed lines, all of which are listed up to [`MAX_PROBLEMS`].
pub fn read_samples(path: &Path) -> Result<Vec<Sample>> {
    read_samples_with(path, None)
}

/// The same with the folder that paths of pictures are of; none stands for the file's own.
///
/// # Errors
/// The same as for [`read_samples`].
pub fn read_samples_with(path: &Path, image_folder: Option<&Path>) -> Result<Vec<Sample>> {
    let file = File::open(path).map_err(cannot_read(path))?;
    read(path, image_folder, BufReader::new(file))
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
pub fn read_samples_from(path: &Path, reader: impl BufRead + Seek) -> Result<Vec<Sample>> {
    read(path, None, reader)
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

fn read(path: &Path, image_folder: Option<&Path>, mut reader: impl BufRead + Seek) -> Result<Vec<Sample>> {
    let failure = cannot_read(path);
    let folder = image_folder.or(path.parent()).unwrap_or(Path::new(""));
    let mut problems = Problems::default();
    let head = reader.fill_buf().map_err(&failure)?;
    if let Some(what) = other_kind(head) {
        problems.add(0, 0, what);
        return problems.result(path, Vec::new());
    }
    let start = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head).trim_ascii_start();
    let nothing = head.is_empty();
    let samples = if start.starts_with(b"[") {
        array(folder, reader, &mut problems)
    } else {
        lines(folder, reader, &mut problems)
    };
    let samples = samples.map_err(&failure)?;
    if samples.is_empty() && problems.list.is_empty() {
        let what = if nothing { "the file is empty" } else { "the file holds no sample" };
        problems.add(0, 0, what);
    }
    problems.result(path, samples)
}

/// The samples of a file with one object a line.
fn lines(
    folder: &Path,
    mut reader: impl BufRead + Seek,
    problems: &mut Problems,
) -> std::io::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    let mut bytes = Vec::new();
    let mut first = true;
    for number in 1.. {
        bytes.clear();
        let read = (&mut reader).take(MAX_LINE + 1).read_until(b'\n', &mut bytes)?;
        if read == 0 {
            break;
        }
        if read as u64 > MAX_LINE && bytes.last() != Some(&b'\n') {
            problems.add(number, 0, format!("the line is longer than {} MiB", MAX_LINE >> 20));
            break;
        }
        let skipped = if number == 1 && bytes.starts_with(BYTE_ORDER_MARK) { 3 } else { 0 };
        let line = &bytes[skipped..];
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if first && let Some(what) = not_lines(&mut reader, line) {
            problems.add(0, 0, what);
            break;
        }
        first = false;
        match parse(number, line, folder) {
            Ok(sample) => samples.push(sample),
            Err(mistake) => problems.add(number, mistake.column + skipped, mistake.what),
        }
    }
    Ok(samples)
}

/// The samples of a file that is one array of objects.
fn array(folder: &Path, reader: impl BufRead, problems: &mut Problems) -> std::io::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    let mut elements = Elements::new(reader);
    for number in 1.. {
        let element = match elements.next() {
            Ok(Some(element)) => element,
            Ok(None) => break,
            Err(Broken::Io(error)) => return Err(error),
            Err(Broken::Json(line, column, what)) => {
                problems.add(line, column, what);
                break;
            }
        };
        match parse(element.line, &element.bytes, folder) {
            Ok(sample) => samples.push(Sample { element: Some(number), ..sample }),
            Err(mistake) => {
                let before = if mistake.row == 0 { element.column - 1 } else { 0 };
                let what = format!("element {number}: {}", mistake.what);
                problems.add(element.line + mistake.row, before + mistake.column, what);
            }
        }
    }
    Ok(samples)
}
