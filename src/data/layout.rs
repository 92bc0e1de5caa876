//! How the samples of a file are laid out.

use super::columns::Columns;
use super::gzip::{GZIP, unpacked};
use super::sample::{Sample, Written};
use crate::Result;
use crate::io::cannot_read;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// What stands between the cells of a row, the likeliest first.
const SEPARATORS: [u8; 4] = [b',', b'\t', b';', b'|'];
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// How the samples of a file are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One JSON object a line.
    Lines,
    /// One JSON array of objects.
    Array,
    /// A header and rows, with this between their cells.
    Table { separator: u8 },
    /// Plain text: one sample.
    Text,
}

/// How files are read, besides what they say themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// The folder that relative paths of pictures are of; none for the file's own.
    pub image_folder: Option<PathBuf>,
    /// Other names of keys and columns.
    pub columns: Columns,
    /// The ending that a file is read by, such as `csv`; none for its own.
    pub ending: Option<String>,
}

impl Layout {
    /// By the ending of the name (`.csv`, `.tsv`, `.txt`, each also with `.gz`), or that of the options, and the first bytes.
    pub fn of(path: &Path, options: &ReadOptions, head: &[u8]) -> Self {
        let head = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head);
        let first = head.split(|byte| *byte == b'\n').next().unwrap_or(head);
        let start = head.trim_ascii_start();
        let json = if start.starts_with(b"[") { Layout::Array } else { Layout::Lines };
        match options.ending.clone().unwrap_or_else(|| ending(path)).as_str() {
            "csv" => Layout::Table { separator: separator(first) },
            "tsv" | "tab" => Layout::Table { separator: b'\t' },
            "txt" | "text" => {
                let object = serde_json::from_slice::<IgnoredAny>(first).is_ok() && start.starts_with(b"{");
                let array = start.starts_with(b"[") && start[1..].trim_ascii_start().starts_with(b"{");
                if object || array { json } else { Layout::Text }
            }
            _ => json,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Layout::Lines => "lines of JSON",
            Layout::Array => "an array of JSON",
            Layout::Table { separator: b'\t' } => "a table with tabs",
            Layout::Table { separator: b';' } => "a table with semicolons",
            Layout::Table { separator: b'|' } => "a table with bars",
            Layout::Table { .. } => "a table with commas",
            Layout::Text => "plain text, all of which is trained",
        }
    }
}

/// The ending of a file's name in lower case, without that of gzip.
fn ending(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.rsplit_once('.').map_or("", |(_, ending)| ending).to_string()
}

/// What occurs most often in a header, outside of quotes.
fn separator(header: &[u8]) -> u8 {
    let mut counts = [0usize; SEPARATORS.len()];
    let mut quoted = false;
    for byte in header {
        quoted ^= *byte == b'"';
        if let Some(at) = SEPARATORS.iter().position(|separator| separator == byte).filter(|_| !quoted) {
            counts[at] += 1;
        }
    }
    let most = counts.iter().max().copied().unwrap_or(0);
    SEPARATORS[counts.iter().position(|count| *count == most).unwrap_or(0)]
}

/// What a file was recognised as, as a sentence; none for lines of JSON with this crate's own keys.
///
/// # Errors
/// The file cannot be read.
pub fn recognised(path: &Path, options: &ReadOptions, samples: &[Sample]) -> Result<Option<String>> {
    let mut reader = BufReader::new(File::open(path).map_err(cannot_read(path))?);
    let head = reader.fill_buf().map_err(cannot_read(path))?;
    let packed = head.starts_with(GZIP);
    let mut text = unpacked(reader).map_err(cannot_read(path))?;
    let head = text.fill_buf().map_err(cannot_read(path))?;
    let layout = Layout::of(path, options, head);
    let mut kinds: BTreeMap<Written, usize> = BTreeMap::new();
    for sample in samples {
        *kinds.entry(sample.written).or_default() += 1;
    }
    let own = kinds.keys().all(|kind| !matches!(kind, Written::ShareGpt | Written::Alpaca));
    if layout == Layout::Lines && own && !packed {
        return Ok(None);
    }
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let packed = if packed { " in gzip" } else { "" };
    let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {}", kind.name())).collect();
    let held = if layout == Layout::Text { String::new() } else { format!(": {}", kinds.join(", ")) };
    Ok(Some(format!("{name} is read as {}{packed}{held}", layout.name())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_name_and_content() {
        let options = ReadOptions::default();
        let of = |name: &str, head: &str| Layout::of(name.as_ref(), &options, head.as_bytes());
        assert_eq!(of("a.jsonl", "{}\n"), Layout::Lines);
        assert_eq!(of("a.json", "\u{feff} [\n{}]"), Layout::Array);
        assert_eq!(of("A.CSV", "a,b\n"), Layout::Table { separator: b',' });
        assert_eq!(of("a.csv.gz", "\"a,b,c\";b\n"), Layout::Table { separator: b';' });
        assert_eq!(of("a.csv", "text\n"), Layout::Table { separator: b',' });
        assert_eq!(of("a.tsv", "a b\n"), Layout::Table { separator: b'\t' });
        assert_eq!(of("a.txt", "{} is what it began with\n"), Layout::Text);
        assert_eq!(of("a.txt", "[1] a citation\n"), Layout::Text);
        assert_eq!(of("a.txt", "{\"text\": \"a\"}\n"), Layout::Lines);
    }
}
