//! The objects of a file of JSON, one a line or in one array; what each is is for the caller to say.

use super::array::{Broken, Elements};
use super::files::{MAX_LINE, not_lines};
use super::layout::BYTE_ORDER_MARK;
use super::mistake::Mistake;
use super::problems::Problems;
use std::io::{BufRead, Read};

/// What `parse` makes of the objects of a file with one a line. It is given the number of the line, from 1, and its bytes.
pub(super) fn lines<T>(
    mut reader: Box<dyn BufRead + '_>,
    problems: &mut Problems,
    mut parse: impl FnMut(usize, Option<usize>, &[u8]) -> Result<T, Mistake>,
) -> std::io::Result<Vec<T>> {
    let mut objects = Vec::new();
    let mut bytes = Vec::new();
    let mut first = true;
    for number in 1.. {
        bytes.clear();
        let read = reader.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut bytes)?;
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
        if first && let Some(what) = not_lines(&mut reader, line)? {
            problems.add(0, 0, what);
            break;
        }
        first = false;
        match parse(number, None, line) {
            Ok(object) => objects.push(object),
            Err(mistake) => problems.add(number, mistake.column + skipped, mistake.what),
        }
    }
    Ok(objects)
}

/// The same of a file that is one array of objects; `parse` is given the number of the element, from 1, too.
pub(super) fn array<T>(
    reader: impl BufRead,
    problems: &mut Problems,
    mut parse: impl FnMut(usize, Option<usize>, &[u8]) -> Result<T, Mistake>,
) -> std::io::Result<Vec<T>> {
    let mut objects = Vec::new();
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
        match parse(element.line, Some(number), &element.bytes) {
            Ok(object) => objects.push(object),
            Err(mistake) => {
                let before = if mistake.row == 0 { element.column - 1 } else { 0 };
                let what = format!("element {number}: {}", mistake.what);
                problems.add(element.line + mistake.row, before + mistake.column, what);
            }
        }
    }
    Ok(objects)
}
