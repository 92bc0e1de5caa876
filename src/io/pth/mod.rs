//! Reading the files that PyTorch wrote before version 1.6: pickles, then the values.
//!
//! ```text
//! a magic number, a version (1001), facts of the machine, names and tensors, the keys of storages    five pickles
//! of each key in that order: a count (i64), so many values                                           little-endian
//! ```
//!
//! A pickle is a program. Of its instructions those are read that a dictionary of tensors is written with, and they make
//! plain values: nothing is imported, called or run. All others are refused.

mod machine;
mod value;

use machine::Machine;
use value::{Kind, Stored, Value};

use super::mapped::{Bytes, refuse_zip};
use super::{Named, missing};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The first pickle: protocol 2, ten bytes of a number, the end.
const MAGIC: &[u8] = &[0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
const VERSION: i64 = 1001;
/// The name of the format in messages.
const KIND: &str = "PyTorch";

/// A tensor of the file.
struct Entry {
    dims: Vec<usize>,
    steps: Vec<usize>,
    range: Range<usize>,
}

impl Entry {
    /// Its values, row-major, of those of its storage.
    fn values(&self, stored: &[[u8; 4]]) -> Vec<f32> {
        let value = |mut number: usize| {
            let mut at = 0;
            for (size, step) in self.dims.iter().zip(&self.steps).rev() {
                at += number % size * step;
                number /= size;
            }
            stored.get(at).map_or(f32::NAN, |bytes| f32::from_le_bytes(*bytes))
        };
        (0..stored.len()).map(value).collect()
    }
}

/// A `.pth` file of the old kind: f32 tensors by name.
///
/// Tensors of integers (counters of batch norms) are left out and named. A file of the new kind, which is a zip archive, is
/// refused with how to convert it.
///
/// ```no_run
/// let file = mixlora::io::PthFile::open("efficientnet-lite0-57934424.pth")?;
/// assert_eq!(file.dims("_conv_stem.weight")?, [32, 3, 3, 3]);
/// # Ok::<(), mixlora::Error>(())
/// ```
pub struct PthFile {
    path: PathBuf,
    bytes: Bytes,
    tensors: BTreeMap<String, Entry>,
    left_out: Vec<String>,
}

impl PthFile {
    /// Opens a file; its values are not copied.
    ///
    /// # Errors
    /// It cannot be read, is of another kind, is cut off, or has instructions or tensors that are not read: the error says
    /// what and at which byte.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::of_bytes(path, Bytes::map(path, KIND)?)
    }

    /// The same from bytes in memory; messages call it `name`.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Self> {
        Self::of_bytes(name.as_ref(), Bytes::Owned(bytes))
    }

    fn of_bytes(path: &Path, bytes: Bytes) -> Result<Self> {
        refuse_zip(path, &bytes)?;
        let (tensors, left_out) = read(&bytes).map_err(|what| Error::file(path, what))?;
        Ok(PthFile { path: path.into(), bytes, tensors, left_out })
    }

    /// The names of all f32 tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
    /// The names of tensors of integers, which are not read.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }
    /// The shape of a tensor.
    ///
    /// # Errors
    /// There is no tensor of that name.
    pub fn dims(&self, name: &str) -> Result<&[usize]> {
        match self.tensors.get(name) {
            Some(entry) => Ok(&entry.dims),
            None => Err(missing(&self.path, "tensor", name, self.names())),
        }
    }
    /// All f32 tensors with their values.
    pub fn tensors(&self) -> Vec<Named> {
        let named = |(name, entry): (&String, &Entry)| Named {
            name: name.clone(),
            dims: entry.dims.clone(),
            values: entry.values(self.bytes.get(entry.range.clone()).unwrap_or_default().as_chunks().0),
        };
        self.tensors.iter().map(named).collect()
    }
}

/// Tensors by their names, and names of those that are left out.
type Contents = (BTreeMap<String, Entry>, Vec<String>);

fn read(bytes: &[u8]) -> std::result::Result<Contents, String> {
    if !bytes.starts_with(MAGIC) {
        let what =
            "is not a PyTorch file: neither a zip archive nor the older pickles with their magic number";
        return Err(what.into());
    }
    let mut machine = Machine::at(bytes, MAGIC.len());
    if !matches!(machine.run()?, Value::Number(VERSION)) {
        return Err(format!("has another version than {VERSION} behind its magic number"));
    }
    // Facts of the machine; that it had another byte order is refused where it is said.
    machine.run()?;
    let Value::Ordered(number) = machine.run()? else {
        return Err("holds no OrderedDict of tensors: save model.state_dict(), and not the model".into());
    };
    let named = machine.dictionary(number);
    let Value::Keys(keys) = machine.run()? else {
        return Err("has no list of storages behind its tensors".into());
    };
    let keys = machine.list(keys);
    let storages = values_of(bytes, machine.place(), &keys, machine.storages())?;
    place(named, &storages)
}

/// The places of the values of each storage, which fill the rest of the file.
fn values_of<'a>(
    bytes: &[u8],
    start: usize,
    keys: &[&'a str],
    known: &BTreeMap<&'a str, (Kind, usize)>,
) -> std::result::Result<BTreeMap<&'a str, Range<usize>>, String> {
    let mut at = start;
    let mut places = BTreeMap::new();
    for key in keys {
        let Some(&(kind, count)) = known.get(key) else {
            return Err(format!("lists the storage '{key}', which no tensor has"));
        };
        let cut = || format!("is cut off in the values of storage '{key}', at byte {}", bytes.len());
        let (said, _) = bytes.get(at..).and_then(|rest| rest.split_first_chunk()).ok_or_else(cut)?;
        if u64::from_le_bytes(*said) != count as u64 {
            let said = i64::from_le_bytes(*said);
            return Err(format!("has {said} values in storage '{key}' at byte {at}, {count} were announced"));
        }
        at += 8;
        let length = count.checked_mul(kind.bytes()).filter(|&length| length <= bytes.len() - at);
        let range = at..at + length.ok_or_else(cut)?;
        at = range.end;
        if places.insert(*key, range).is_some() {
            return Err(format!("lists the storage '{key}' twice"));
        }
    }
    if at != bytes.len() {
        return Err(format!("goes on behind its last value, at byte {at} of {}", bytes.len()));
    }
    Ok(places)
}

/// The tensors, each with the whole of a storage.
fn place(
    named: Vec<(&str, Stored<'_>)>,
    storages: &BTreeMap<&str, Range<usize>>,
) -> std::result::Result<Contents, String> {
    let mut tensors = BTreeMap::new();
    let mut left_out = Vec::new();
    let mut names = BTreeSet::new();
    let mut used = BTreeSet::new();
    for (name, stored) in named {
        if !names.insert(name) {
            return Err(format!("has two tensors '{name}'"));
        }
        if stored.kind == Kind::Integers {
            left_out.push(name.to_string());
            continue;
        }
        let Some(range) = storages.get(stored.key) else {
            return Err(format!("has no values of tensor '{name}' (storage '{}')", stored.key));
        };
        // A storage of no tensor else, or a few bytes would be many tensors.
        if !used.insert(stored.key) {
            return Err(format!(
                "has a tensor '{name}' that shares its values with another, which is not read"
            ));
        }
        let entry = Entry { dims: stored.dims, steps: stored.steps, range: range.clone() };
        tensors.insert(name.to_string(), entry);
    }
    left_out.sort();
    Ok((tensors, left_out))
}
