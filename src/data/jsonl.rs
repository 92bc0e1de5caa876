//! Samples in files: of lines or of one array of objects, of a table's rows, or of plain text.

use super::files::{MAX_LINE, other_kind};
use super::gzip::unpacked;
use super::layout::{BYTE_ORDER_MARK, Layout, ReadOptions};
use super::objects::{array, lines};
use super::problems::Problems;
use super::sample::{Body, Sample, parse};
use super::table::rows;
use crate::Result;
use crate::io::cannot_read;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Reads the samples of a file: lines or an array of JSON, a table (`.csv`, `.tsv`) or plain text (`.txt`), each also packed
/// by gzip. Paths of pictures are of its folder.
///
/// # Errors
/// The file cannot be read, has no sample, or has malformed lines, all of which are listed up to [`MAX_PROBLEMS`](super::MAX_PROBLEMS).
pub fn read_samples(path: &Path) -> Result<Vec<Sample>> {
    read_samples_with(path, &ReadOptions::default())
}

/// The same with options.
///
/// # Errors
/// The same as for [`read_samples`].
pub fn read_samples_with(path: &Path, options: &ReadOptions) -> Result<Vec<Sample>> {
    let file = File::open(path).map_err(cannot_read(path))?;
    read(path, options, BufReader::new(file))
}

/// Reads samples from an open file or from memory; messages, and what depends on a file's name, use `path`.
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
pub fn read_samples_from(path: &Path, reader: impl BufRead) -> Result<Vec<Sample>> {
    read(path, &ReadOptions::default(), reader)
}

fn read(path: &Path, options: &ReadOptions, reader: impl BufRead) -> Result<Vec<Sample>> {
    let failure = cannot_read(path);
    let folder = options.image_folder.as_deref().or(path.parent()).unwrap_or(Path::new(""));
    let mut reader = unpacked(reader).map_err(&failure)?;
    let mut problems = Problems::default();
    let head = reader.fill_buf().map_err(&failure)?;
    if let Some(what) = other_kind(head) {
        problems.add(0, 0, what);
        return problems.result(path, Vec::new());
    }
    let nothing = head.is_empty();
    let layout = Layout::of(path, options, head);
    let sample = |line: usize, element: Option<usize>, bytes: &[u8]| {
        parse(line, bytes, folder, &options.columns).map(|sample| Sample { element, ..sample })
    };
    let samples = match layout {
        Layout::Array => array(reader, &mut problems, sample),
        Layout::Lines => lines(reader, &mut problems, sample),
        Layout::Text => document(reader, &mut problems),
        Layout::Table { separator } => {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| rows(options, folder, separator, &bytes, &mut problems))
        }
    };
    let samples = samples.map_err(&failure)?;
    if samples.is_empty() && problems.is_empty() {
        let what = match layout {
            _ if nothing => "the file is empty",
            Layout::Table { .. } => "the table has no row below its header",
            _ => "the file holds no sample",
        };
        problems.add(0, 0, what);
    }
    problems.result(path, samples)
}

/// The sample of a file of plain text.
fn document(reader: impl BufRead, problems: &mut Problems) -> std::io::Result<Vec<Sample>> {
    let mut bytes = Vec::new();
    reader.take(MAX_LINE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_LINE {
        problems.add(0, 0, format!("plain text of more than {} MiB: split the file", MAX_LINE >> 20));
        return Ok(Vec::new());
    }
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) if text.trim().is_empty() => Ok(Vec::new()),
        Ok(text) => Ok(vec![Sample::new(1, None, Body::Document(text.replace("\r\n", "\n")))]),
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            problems.add(line, before.len() - start + 1, "invalid UTF-8: write the text in UTF-8");
            Ok(Vec::new())
        }
    }
}
