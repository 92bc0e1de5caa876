//! The files of a data set, and files whose content is not what their name says.

use super::survey::some_of;
use crate::io::cannot_read;
use crate::{Error, Result};
use serde::de::IgnoredAny;
use std::io::{BufRead, Cursor, Read};
use std::path::{Path, PathBuf};

/// The largest line in bytes.
pub const MAX_LINE: u64 = 64 << 20;
/// Names of the files of each split, without their endings.
const TRAIN: [&str; 2] = ["train", "training"];
const VALID: [&str; 5] = ["valid", "validation", "val", "dev", "eval"];
const TEST: [&str; 2] = ["test", "testing"];
/// Endings of files that are read, the first existing one; each also with `.gz` behind it.
const READ: [&str; 6] = ["jsonl", "ndjson", "json", "csv", "tsv", "txt"];
/// Further endings of files that may contain samples.
const ENDINGS: [&str; 7] = ["parquet", "arrow", "gz", "zst", "bz2", "xz", "zip"];

/// The files of a data set, as far as they exist.
///
/// ```
/// use mixlora::data::{DataFiles, read_samples};
/// let folder = tempfile::tempdir()?;
/// std::fs::write(folder.path().join("train.jsonl"), r#"{"prompt": "2 + 2 =", "completion": " 4"}"#)?;
/// let files = DataFiles::find(folder.path())?;
/// let samples = read_samples(files.train.as_deref().unwrap())?;
/// assert_eq!(samples[0].body.kind(), "prompt and completion");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DataFiles {
    pub train: Option<PathBuf>,
    pub valid: Option<PathBuf>,
    pub test: Option<PathBuf>,
    /// Files with similar names that are not read.
    pub unread: Vec<PathBuf>,
}

impl DataFiles {
    /// Finds the files of a folder: `train.jsonl`, `valid.jsonl` (or validation, val, dev, eval) and `test.jsonl`, or the
    /// same with another ending: ndjson, json, csv, tsv, txt, each also with `.gz`. A path of a file names the training data.
    ///
    /// # Errors
    /// The path does not exist, or the folder has none of these files.
    pub fn find(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Ok(DataFiles { train: Some(path.into()), ..Self::default() });
        }
        if !path.is_dir() {
            return Err(Error::file(path, "there is no such file or folder"));
        }
        let first_existing = |words: &[&str]| {
            let endings = READ.iter().flat_map(|ending| [ending.to_string(), format!("{ending}.gz")]);
            let mut names =
                endings.flat_map(|ending| words.iter().map(move |word| format!("{word}.{ending}")));
            names.find_map(|name| Some(path.join(name)).filter(|file| file.is_file()))
        };
        let mut found = DataFiles {
            train: first_existing(&TRAIN),
            valid: first_existing(&VALID),
            test: first_existing(&TEST),
            unread: Vec::new(),
        };
        found.unread = near(path)?.into_iter().filter(|file| found.all().all(|read| read != file)).collect();
        if found.all().next().is_none() {
            let there = found.note().map_or_else(String::new, |note| format!("; {note}"));
            return Err(Error::file(path, format!("holds no train.jsonl, valid.jsonl or test.jsonl{there}")));
        }
        Ok(found)
    }

    /// The existing files in the order train, valid, test.
    pub fn all(&self) -> impl Iterator<Item = &Path> {
        [&self.train, &self.valid, &self.test].into_iter().flatten().map(PathBuf::as_path)
    }

    /// A sentence that names the files that are not read, if there are any.
    pub fn note(&self) -> Option<String> {
        let names =
            self.unread.iter().filter_map(|file| file.file_name()).map(|name| name.to_string_lossy().into());
        let names: Vec<String> = names.collect();
        if names.is_empty() {
            return None;
        }
        let read = "read are train.jsonl, one of valid, validation, val, dev and eval.jsonl, and test.jsonl, or with another \
                    ending: ndjson, json, csv, tsv, txt, each also .gz";
        Some(format!("not read: {}; {read}", some_of(names)))
    }
}

/// The files of a folder that look like a split, by the ending `.jsonl` or the first word of their name.
fn near(folder: &Path) -> Result<Vec<PathBuf>> {
    let failure = cannot_read(folder);
    let splits = [&TRAIN[..], &VALID, &TEST].concat();
    let endings = [&READ[..], &ENDINGS].concat();
    let looks_like_split = |name: &str| {
        let name = name.to_ascii_lowercase();
        let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
        let word = name.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or("");
        matches!(ending, "jsonl" | "ndjson") || (splits.contains(&word) && endings.contains(&ending))
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(&failure)? {
        let path = entry.map_err(&failure)?.path();
        let named = path.file_name().is_some_and(|name| looks_like_split(&name.to_string_lossy()));
        if named && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// First bytes of files that are not UTF-8 text or not data, with the kind of file.
const KINDS: &[(&[u8], &str)] = &[
    (b"\xff\xfe\0\0", "text in UTF-32"),
    (b"\0\0\xfe\xff", "text in UTF-32"),
    (b"{\0\0\0", "text in UTF-32"),
    (b"\0\0\0{", "text in UTF-32"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
    (b"{\0", "text in UTF-16"),
    (b"\0{", "text in UTF-16"),
    (b"[\0", "text in UTF-16"),
    (b"\0[", "text in UTF-16"),
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"%PDF", "a PDF"),
    (b"version https://git-lfs", "a pointer of Git LFS"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
];

/// Recognises other kinds of files by their first bytes; returns the kind and the remedy.
pub(super) fn other_kind(head: &[u8]) -> Option<String> {
    let starts =
        |magic: &[u8]| head.get(..magic.len()).is_some_and(|start| start.eq_ignore_ascii_case(magic));
    let kind = KINDS.iter().find(|(magic, _)| starts(magic))?.1;
    let cure = match kind.rsplit(' ').next().unwrap_or("") {
        "UTF-16" | "UTF-32" => {
            let name = &kind["text in ".len()..];
            format!("write it in UTF-8, for example with `iconv -f {name} -t UTF-8`")
        }
        "file" if kind == "a Parquet file" || kind == "an Arrow file" => "write its rows as JSONL".into(),
        "archive" => "unpack it; a spreadsheet is saved as CSV".into(),
        "file" => "unpack it".into(),
        "LFS" => "fetch the file with `git lfs pull`".into(),
        "page" => "look at what was downloaded".into(),
        _ => "write one JSON object a line".into(),
    };
    Some(format!("is {kind}, not data in UTF-8; {cure}"))
}

/// Recognises JSON in another layout, or no JSON at all, by the first line. What the reader gives next stays the same.
pub(super) fn not_lines(reader: &mut Box<dyn BufRead + '_>, line: &[u8]) -> std::io::Result<Option<String>> {
    let cure = "write one object a line, for example with `jq -c";
    let start = line.trim_ascii_start();
    if !start.starts_with(b"{") {
        let shown: String = String::from_utf8_lossy(start.trim_ascii_end()).chars().take(40).collect();
        let cure = "; tables and plain text are known by their endings, .csv, .tsv and .txt";
        return Ok(Some(format!(
            "is not JSONL, which has one object a line: it begins with {shown:?}{cure}"
        )));
    }
    let cut = serde_json::from_slice::<IgnoredAny>(line).is_err_and(|error| error.is_eof());
    if !cut || !line.ends_with(b"\n") {
        return Ok(None);
    }
    // One value may span several lines.
    let mut more = Vec::new();
    reader.by_ref().take(MAX_LINE).read_to_end(&mut more)?;
    let all = [line, &more].concat();
    let value = serde_json::Deserializer::from_slice(&all).into_iter::<IgnoredAny>().next();
    if value.is_some_and(|value| value.is_ok()) {
        return Ok(Some(format!("is pretty-printed JSON, not JSONL; {cure} .`")));
    }
    let rest = std::mem::replace(reader, Box::new(std::io::empty()));
    *reader = Box::new(Cursor::new(more).chain(rest));
    Ok(None)
}
