//! Files of arrays of f32 that can be computed again, by key: written once, then mapped into memory.
//!
//! ```text
//! magic | arrays, each at a multiple of 64 bytes | index, JSON | its length, u64 | its CRC-32, u32 | magic
//! ```

use super::mapped::Bytes;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// How these files begin and end.
const MAGIC: &[u8; 16] = b"mixlora values 1";
/// Arrays begin at multiples of this.
const ALIGN: usize = 64;

/// What a file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    /// What made the arrays.
    about: Value,
    arrays: Vec<Stored>,
}

/// Where an array stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    pub key: String,
    pub dims: [usize; 3],
    /// Its first byte in the file.
    start: usize,
    /// CRC-32 of its bytes.
    checksum: u32,
}

/// An open file of arrays.
pub struct ValueFile {
    path: PathBuf,
    bytes: Arc<Bytes>,
    index: Index,
}

/// An array in a mapped file.
#[derive(Clone)]
pub struct MappedValues {
    bytes: Arc<Bytes>,
    range: Range<usize>,
}

impl Deref for MappedValues {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // Where it is made it is seen to be whole and aligned.
        bytemuck::try_cast_slice(&self.bytes[self.range.clone()]).unwrap_or_default()
    }
}

impl ValueFile {
    /// Whether a file begins like one of these.
    pub fn is_one(path: &Path) -> bool {
        let mut start = [0; MAGIC.len()];
        let read = File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut start));
        read.is_ok() && start == *MAGIC
    }

    /// Maps a file and reads its index.
    ///
    /// # Errors
    /// It cannot be read, or is damaged. Arrays are looked at when they are taken.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = Bytes::open(path, "values")?;
        let index = index(&bytes).ok_or_else(|| Error::file(path, "is damaged: its index cannot be read"))?;
        Ok(ValueFile { path: path.into(), bytes: Arc::new(bytes), index })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
    /// What made its arrays.
    pub fn about(&self) -> &Value {
        &self.index.about
    }
    /// What it holds.
    pub fn arrays(&self) -> &[Stored] {
        &self.index.arrays
    }

    /// An array.
    ///
    /// # Errors
    /// Its bytes are not those that were written.
    pub fn values(&self, array: &Stored) -> Result<MappedValues> {
        let damaged = || Error::file(&self.path, format!("is damaged: the values of '{}'", array.key));
        let length = array.dims.iter().try_fold(4usize, |n, &dim| n.checked_mul(dim));
        let end = length.and_then(|length| length.checked_add(array.start)).ok_or_else(damaged)?;
        let values = MappedValues { bytes: self.bytes.clone(), range: array.start..end };
        let bytes = self.bytes.get(values.range.clone()).ok_or_else(damaged)?;
        let whole = bytemuck::try_cast_slice::<u8, f32>(bytes).is_ok();
        if !whole || crc32fast::hash(bytes) != array.checksum {
            return Err(damaged());
        }
        Ok(values)
    }
}

/// The index of a whole file.
fn index(bytes: &[u8]) -> Option<Index> {
    let (rest, magic) = bytes.split_last_chunk::<{ MAGIC.len() }>()?;
    if magic != MAGIC || !bytes.starts_with(MAGIC) {
        return None;
    }
    let (rest, checksum) = rest.split_last_chunk::<4>()?;
    let (rest, length) = rest.split_last_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let index = rest.get(rest.len().checked_sub(length)?..)?;
    (crc32fast::hash(index) == u32::from_le_bytes(*checksum))
        .then(|| serde_json::from_slice(index).ok())
        .flatten()
}

/// A file of arrays that is being written. It has its name when it is whole, and is gone where it never becomes so.
pub struct ValueWriter {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
    at: usize,
    index: Index,
}

impl ValueWriter {
    /// Begins a file of a new name in a folder, which is made where it is missing.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn create(dir: &Path, ending: &str, about: Value) -> Result<Self> {
        static WRITTEN: AtomicU32 = AtomicU32::new(0);
        fs::create_dir_all(dir).map_err(|error| Error::file(dir, format!("cannot be made: {error}")))?;
        let process = std::process::id();
        let path = loop {
            let path = dir.join(format!("{process}-{}.{ending}", WRITTEN.fetch_add(1, Relaxed)));
            if !path.exists() {
                break path;
            }
        };
        let temporary = path.with_extension(format!("{ending}.tmp"));
        let file = File::create(&temporary);
        let file = file.map_err(|error| Error::file(&temporary, format!("cannot be created: {error}")))?;
        let index = Index { about, arrays: Vec::new() };
        let mut writer = ValueWriter { path, temporary, file: Some(BufWriter::new(file)), at: 0, index };
        writer.write(MAGIC)?;
        Ok(writer)
    }

    /// Bytes that are written so far.
    pub fn len(&self) -> usize {
        self.at
    }
    /// Whether no array is written.
    pub fn is_empty(&self) -> bool {
        self.index.arrays.is_empty()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(file) = &mut self.file else { return Err(self.failed(&std::io::ErrorKind::Other.into())) };
        match file.write_all(bytes) {
            Ok(()) => {
                self.at += bytes.len();
                Ok(())
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        let dir = self.path.parent().unwrap_or(&self.path);
        Error::file(dir, format!("cannot be written behind {} bytes of a file: {error}", self.at))
    }

    fn pad(&mut self) -> Result<()> {
        let zeros = [0; ALIGN];
        self.write(&zeros[..self.at.next_multiple_of(ALIGN) - self.at])
    }

    /// Writes an array.
    ///
    /// # Errors
    /// It cannot be written, for example because the disk is full.
    pub fn push(&mut self, key: &str, dims: [usize; 3], values: &[f32]) -> Result<()> {
        self.pad()?;
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let stored = Stored { key: key.into(), dims, start: self.at, checksum: crc32fast::hash(bytes) };
        self.write(bytes)?;
        self.index.arrays.push(stored);
        Ok(())
    }

    /// Ends the file and opens it.
    ///
    /// # Errors
    /// It cannot be written; there is no file then.
    pub fn finish(mut self) -> Result<ValueFile> {
        self.pad()?;
        let index = serde_json::to_vec(&self.index)
            .map_err(|error| Error::file(&self.path, format!("has no index: {error}")))?;
        let length = (index.len() as u64).to_le_bytes();
        let checksum = crc32fast::hash(&index).to_le_bytes();
        for bytes in [&index[..], &length, &checksum, MAGIC] {
            self.write(bytes)?;
        }
        if let Some(mut file) = self.file.take() {
            let done = file.flush().and_then(|()| file.get_ref().sync_all());
            let done = done.and_then(|()| fs::rename(&self.temporary, &self.path));
            if let Err(error) = done {
                let _ = fs::remove_file(&self.temporary);
                return Err(self.failed(&error));
            }
        }
        crate::atomic::sync_parent(&self.path)?;
        ValueFile::open(&self.path)
    }
}

impl Drop for ValueWriter {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // What could not be written is not tried again.
            let _ = file.into_parts();
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn written(dir: &Path) -> PathBuf {
        let mut writer = ValueWriter::create(dir, "values", json!({ "of": "a test" })).unwrap();
        writer.push("one", [1, 2, 2], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        writer.push("two", [1, 1, 3], &[5.0, 6.0, 7.0]).unwrap();
        writer.finish().unwrap().path().to_path_buf()
    }

    #[test]
    fn arrays_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = ValueFile::open(&written(&dir.path().join("new"))).unwrap();
        assert_eq!(file.about(), &json!({ "of": "a test" }));
        let [one, two] = file.arrays() else { panic!("two arrays") };
        assert_eq!((one.key.as_str(), one.dims), ("one", [1, 2, 2]));
        let values = file.values(two).unwrap();
        drop(file);
        assert_eq!(&values[..], [5.0, 6.0, 7.0]);
    }

    #[test]
    fn what_is_damaged_or_never_ended_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let whole = fs::read(&path).unwrap();
        for (at, opens) in [(0, false), (66, true), (whole.len() - 40, false), (whole.len() - 1, false)] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            let file = ValueFile::open(&path);
            assert_eq!(file.is_ok(), opens, "byte {at}");
            if let Ok(file) = file {
                let [one, two] = file.arrays() else { panic!("two arrays") };
                assert!(file.values(one).is_err() && file.values(two).is_ok());
            }
        }
        for length in [0, 1, 15, 40, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(ValueFile::open(&path).is_err(), "{length} bytes");
        }
        fs::remove_file(&path).unwrap();
        let mut writer = ValueWriter::create(dir.path(), "values", json!(null)).unwrap();
        writer.push("one", [1, 1, 1], &[1.0]).unwrap();
        drop(writer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
