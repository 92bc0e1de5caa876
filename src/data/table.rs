//! Samples in the rows of a table, whose header names the keys.

use super::layout::{BYTE_ORDER_MARK, ReadOptions};
use super::problems::Problems;
use super::sample::{Sample, of_object};
use super::survey::some_of;
use csv::{ByteRecord, ReaderBuilder};
use serde_json::{Map, Value};
use std::path::Path;

/// Keys of which at least one must be there.
const NEEDED: [&str; 6] = ["messages", "conversations", "prompt", "text", "instruction", "input"];
/// Keys whose cells may hold JSON.
const LISTS: [&str; 6] = ["messages", "conversations", "history", "images", "image", "condition"];

/// The samples of a table in memory.
pub(super) fn rows(
    options: &ReadOptions,
    folder: &Path,
    separator: u8,
    bytes: &[u8],
    problems: &mut Problems,
) -> Vec<Sample> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let mut reader =
        ReaderBuilder::new().delimiter(separator).has_headers(false).flexible(true).from_reader(bytes);
    let mut record = ByteRecord::new();
    let mut keys: Option<Vec<Option<String>>> = None;
    let mut samples = Vec::new();
    // Where the last row begins: its line and its byte.
    let mut line = 1;
    let mut start = 0;
    // A reader of bytes in memory has no failure but those of the table's form, and all lengths are taken.
    while reader.read_byte_record(&mut record).unwrap_or(false) {
        let from = record.position().map_or(0, |at| at.byte() as usize).min(bytes.len());
        // Line breaks in front of a row, of blank lines too, count as parts of it.
        let breaks = bytes[from..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        line += bytes[start..from + breaks].iter().filter(|byte| **byte == b'\n').count();
        start = from + breaks;
        let Some(keys) = &keys else {
            match header(options, &record) {
                Ok(found) => keys = Some(found),
                Err(what) => {
                    problems.add(line, 0, what);
                    return Vec::new();
                }
            }
            continue;
        };
        match sample(keys, &record, line, folder) {
            Ok(sample) => samples.push(sample),
            Err(what) => problems.add(line, 0, what),
        }
    }
    if let Some(what) = open_quote(&bytes[start..], separator) {
        problems.add(line, 0, what);
    }
    samples
}

/// The keys of the columns; none for columns that are not read.
fn header(options: &ReadOptions, record: &ByteRecord) -> Result<Vec<Option<String>>, String> {
    let mut names = Vec::new();
    for cell in record {
        let name = std::str::from_utf8(cell).map_err(|_| "the header is not UTF-8")?.trim();
        if !name.is_empty() && names.contains(&name) {
            return Err(format!("the header names the column '{name}' twice"));
        }
        names.push(name);
    }
    if let Some(absent) = options.columns.absent(&names) {
        return Err(format!("there is no column '{absent}': the header has {}", quoted(&names)));
    }
    let key = |name: &&str| options.columns.key(name).filter(|key| !key.is_empty()).map(String::from);
    let keys: Vec<Option<String>> = names.iter().map(key).collect();
    if !keys.iter().flatten().any(|key| NEEDED.contains(&key.as_str())) {
        let what = "the first line is no header with a column 'prompt' and 'completion', 'instruction' and \
                    'output', 'messages' or 'text'";
        let cure = "name the columns as --columns question=prompt,answer=completion";
        return Err(format!("{what}; it has {}: {cure}", quoted(&names)));
    }
    Ok(keys)
}

fn quoted(names: &[&str]) -> String {
    some_of(names.iter().map(|name| format!("'{}'", name.chars().take(40).collect::<String>())).collect())
}

fn sample(
    keys: &[Option<String>],
    record: &ByteRecord,
    line: usize,
    folder: &Path,
) -> Result<Sample, String> {
    if record.len() != keys.len() {
        let cure = "a cell that holds the separator, a quote or a line break stands in double quotes";
        return Err(format!("has {} cells, the header has {}: {cure}", record.len(), keys.len()));
    }
    let mut object = Map::new();
    for (key, cell) in keys.iter().zip(record) {
        let Some(key) = key else { continue };
        let text = std::str::from_utf8(cell).map_err(|error| {
            format!("column '{key}': invalid UTF-8 at byte {} of its cell", error.valid_up_to() + 1)
        })?;
        object.insert(key.clone(), value(key, text)?);
    }
    of_object(object, line, folder)
}

/// The value of a cell: nothing where it is empty, JSON where the key has lists and the cell begins as one, else a text.
fn value(key: &str, text: &str) -> Result<Value, String> {
    if text.is_empty() {
        return Ok(Value::Null);
    }
    if LISTS.contains(&key) && text.trim_start().starts_with(['[', '{']) {
        return serde_json::from_str(text).map_err(|error| format!("column '{key}' is no JSON: {error}"));
    }
    Ok(text.into())
}

/// Tests whether the last row ends inside of quotes, which makes one cell of the rest of a file.
fn open_quote(row: &[u8], separator: u8) -> Option<String> {
    let odd = row.iter().filter(|byte| **byte == b'"').count() % 2 == 1;
    let spans = row.trim_ascii_end().contains(&b'\n');
    let begins = row.starts_with(b"\"") || row.windows(2).any(|pair| pair == [separator, b'"']);
    (odd && (spans || begins)).then(|| "a double quote in this row is never closed".into())
}
