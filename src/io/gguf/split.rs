//! A model in one GGUF file, or in several as llama.cpp's `llama-gguf-split` writes them.

use super::parse::{HEADER_CAPACITY, Header, parse};
use super::{GgufFile, TensorInfo, Value};
use crate::io::mapped::Bytes;
use crate::io::{PartName, listed};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// The advice of messages about parts that cannot be found.
const JOIN: &str = "give all parts their names back, or join them with llama-gguf-split --merge";

impl Header {
    /// A number of the `split.*` metadata.
    fn split(&self, name: &str) -> Option<usize> {
        let number = self.metadata.get(&format!("split.{name}")).and_then(Value::integer)?;
        usize::try_from(number).ok()
    }

    /// The number of parts of the model; 1 for a model in one file.
    fn parts(&self) -> usize {
        self.split("count").unwrap_or(1)
    }
}

/// Opens a file and, if it is a part of a split model, the other parts.
pub(super) fn open(path: &Path) -> Result<GgufFile> {
    let mut capacity = HEADER_CAPACITY;
    let header = parse(path, Bytes::open(path, "GGUF")?, &mut capacity)?;
    if header.parts() <= 1 {
        return Ok(joined(path, header, Vec::new()));
    }
    let paths = part_paths(path, &header)?;
    let mut parts: Vec<Option<Header>> = paths.iter().map(|_| None).collect();
    for part in &paths {
        let header = parse(part, Bytes::open(part, "GGUF")?, &mut capacity)?;
        insert_part(&mut parts, part, header)?;
    }
    let mut parts = parts.into_iter().flatten();
    match parts.next() {
        Some(first) => join(path, first, parts.collect()),
        None => Err(Error::file(path, "has no parts")),
    }
}

/// Opens a file from bytes in memory, which must be a whole model.
pub(super) fn from_bytes(name: &Path, bytes: Vec<u8>) -> Result<GgufFile> {
    let mut capacity = HEADER_CAPACITY;
    let header = parse(name, Bytes::Owned(bytes), &mut capacity)?;
    if header.parts() > 1 {
        return Err(lone_part(name, &header));
    }
    Ok(joined(name, header, Vec::new()))
}

/// The error for a part whose name does not lead to the others.
fn lone_part(path: &Path, header: &Header) -> Error {
    let number = header.split("no").map_or("a part".to_string(), |no| format!("part {}", no + 1));
    Error::file(path, format!("is {number} of {} of a model; {JOIN}", header.parts()))
}

/// The paths of all parts; all files must exist.
fn part_paths(path: &Path, header: &Header) -> Result<Vec<PathBuf>> {
    let count = header.parts();
    let name =
        PartName::parse(path).filter(|name| name.count == count).ok_or_else(|| lone_part(path, header))?;
    let paths: Vec<PathBuf> = name.all(path).collect();
    let absent: Vec<&str> =
        paths.iter().filter(|path| !path.is_file()).filter_map(|path| path.file_name()?.to_str()).collect();
    if absent.is_empty() {
        return Ok(paths);
    }
    let what = format!("is part {} of {count} of a model; there is no {}", name.number, listed(&absent));
    Err(Error::file(path, what))
}

/// Inserts a part at the position that its metadata give.
fn insert_part(parts: &mut [Option<Header>], path: &Path, header: Header) -> Result<()> {
    let refuse = |what: String| Err(Error::file(path, what));
    let count = parts.len();
    if header.parts() != count {
        return refuse(format!("'split.count' is {}, but it lies among {count} parts", header.parts()));
    }
    let Some(no) = header.split("no") else {
        return refuse("'split.no' is missing or no number".into());
    };
    match parts.get_mut(no) {
        None => refuse(format!("'split.no' is {no}, expected 0..{count}")),
        Some(Some(_)) => refuse(format!("'split.no' is {no}, as in another part")),
        Some(place) => {
            *place = Some(header);
            Ok(())
        }
    }
}

/// Joins the parts into one file with the metadata of the first.
fn join(path: &Path, first: Header, others: Vec<Header>) -> Result<GgufFile> {
    let stated = first.split("tensors.count");
    let found = first.tensors.len() + others.iter().map(|part| part.tensors.len()).sum::<usize>();
    if let Some(stated) = stated.filter(|&stated| stated != found) {
        let what = format!("'split.tensors.count' is {stated}, but the parts have {found} tensors");
        return Err(Error::file(path, what));
    }
    let file = joined(path, first, others);
    if file.tensors.len() != found {
        return Err(Error::file(path, "a tensor is in two of its parts"));
    }
    Ok(file)
}

fn joined(path: &Path, first: Header, others: Vec<Header>) -> GgufFile {
    let mut file = GgufFile {
        path: path.to_path_buf(),
        version: first.version,
        files: vec![first.bytes],
        metadata: first.metadata,
        tensors: first.tensors,
    };
    for part in others {
        let place = file.files.len();
        file.files.push(part.bytes);
        let tensors = part.tensors.into_iter();
        file.tensors.extend(tensors.map(|(name, info)| (name, TensorInfo { file: place, ..info })));
    }
    file
}
