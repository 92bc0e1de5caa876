//! Reading GGUF files, versions 2 and 3, little-endian. docs/FORMATS.md has the limits.
//!
//! The format is described in ggml's docs/gguf.md. Only the header is looked at when a file is opened; the tensors
//! stay in the file until they are asked for.

mod parse;
mod split;
mod value;
mod write;

pub use value::{Array, Value};
pub use write::GgufWriter;

use super::mapped::Bytes;
use super::{RawTensor, compare_names, missing};
use crate::{Device, Error, Format, Result, Weight, weight};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const DEFAULT_ALIGNMENT: usize = 32;

/// Where a tensor stands in its file.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Axis lengths as they are stored: innermost first.
    pub dims: Vec<usize>,
    /// Storage format.
    pub kind: Format,
    /// Which file of a model in several parts it is in.
    pub file: usize,
    /// First byte in the file.
    pub offset: usize,
    /// Number of bytes.
    pub bytes: usize,
}

impl TensorInfo {
    /// Length of the innermost axis.
    pub fn cols(&self) -> usize {
        self.dims.first().copied().unwrap_or(1)
    }
    /// Product of the other axes.
    pub fn rows(&self) -> usize {
        self.dims.iter().skip(1).product()
    }
}

/// An open GGUF file, with the other parts where it is one of several.
pub struct GgufFile {
    path: PathBuf,
    version: u32,
    files: Vec<Bytes>,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl GgufFile {
    /// Opens a file and reads its header; the rest is mapped into memory. A part of a model in several files
    /// (`name-00001-of-00003.gguf`) opens all of them.
    ///
    /// # Errors
    /// It cannot be read, or is not a GGUF file that follows the rules; the error names the place. A Git-LFS pointer
    /// is recognised. Parts are missing, or do not fit each other.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        split::open(path.as_ref())
    }

    /// The same from bytes in memory; `name` is for messages.
    ///
    /// # Errors
    /// Those of [`open`](GgufFile::open).
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Self> {
        split::from_bytes(name.as_ref(), bytes)
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Version of the format.
    pub fn version(&self) -> u32 {
        self.version
    }
    /// All metadata.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }
    /// All tensors.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn fail<T>(&self, what: String) -> Result<T> {
        Err(Error::file(&self.path, what))
    }

    /// Compares the tensors with those wanted and gives back the ones that are too many.
    ///
    /// # Errors
    /// Some are missing; the error lists them.
    pub fn expect_tensors<'a>(&self, wanted: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>> {
        compare_names(&self.path, self.tensors.keys().map(String::as_str), wanted)
    }

    /// A tensor's place.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        let names = || self.tensors.keys().map(String::as_str);
        self.tensors.get(name).ok_or_else(|| missing(&self.path, "tensor", name, names()))
    }

    /// The bytes of a tensor as they stand in the file.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn tensor_bytes(&self, name: &str) -> Result<&[u8]> {
        let t = self.tensor(name)?;
        // In the file, by the checks of the parser; tensors without bytes may stand anywhere.
        Ok(self.files[t.file].get(t.offset..t.offset + t.bytes).unwrap_or_default())
    }

    /// A tensor with its bytes.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let t = self.tensor(name)?;
        let bytes = self.tensor_bytes(name)?;
        Ok(RawTensor { rows: t.rows(), cols: t.cols(), axes: t.dims.len(), format: t.kind, bytes })
    }

    fn matrix(&self, name: &str) -> Result<(&TensorInfo, &[u8])> {
        let t = self.tensor(name)?;
        match t.dims.len() {
            2 => Ok((t, self.tensor_bytes(name)?)),
            n => self.fail(format!("tensor '{name}' has {n} axes, expected a matrix")),
        }
    }

    /// A matrix as a weight, in the format it has in the file.
    ///
    /// # Errors
    /// There is no matrix of that name, or the device refuses it.
    pub fn weight(&self, name: &str, device: &Device) -> Result<Weight> {
        let (t, bytes) = self.matrix(name)?;
        Weight::from_raw(device, t.rows(), t.cols(), bytes, t.kind)
    }

    /// Like [`weight`](GgufFile::weight), with row `row_order(i)` of the file as row `i`.
    ///
    /// # Errors
    /// Those of `weight`, or `row_order` gives a row that is not there.
    pub fn weight_rows(
        &self,
        name: &str,
        device: &Device,
        row_order: impl Fn(usize) -> usize,
    ) -> Result<Weight> {
        let (t, bytes) = self.matrix(name)?;
        Weight::from_raw_rows(device, t.rows(), t.cols(), bytes, t.kind, row_order)
    }

    /// All values of a tensor, row-major.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn values_f32(&self, name: &str) -> Result<Vec<f32>> {
        let t = self.tensor(name)?;
        weight::values(t.rows(), t.cols(), self.tensor_bytes(name)?, t.kind)
    }

    /// A metadata entry, if there is one.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        get: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T> {
        let names = || self.metadata.keys().map(String::as_str);
        let value = self.metadata.get(key).ok_or_else(|| missing(&self.path, "metadata", key, names()))?;
        match get(value) {
            Some(v) => Ok(v),
            None => {
                let found = match value.integer() {
                    Some(n) => format!("{} {n}", value.kind()),
                    None => value.kind().to_string(),
                };
                self.fail(format!("metadata '{key}' is {found}, expected {expected}"))
            }
        }
    }

    /// Text.
    ///
    /// # Errors
    /// The entry is missing or has another type; the error names the file, the key and both types.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.typed(key, "string", |v| match v {
            Value::String(s) => Some(s.as_str()),
            _ => None,
        })
    }
    /// A number of any integer type that fits.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.typed(key, "u32", |v| v.integer().and_then(|n| n.try_into().ok()))
    }
    /// A number of any integer type that fits.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn u64(&self, key: &str) -> Result<u64> {
        self.typed(key, "u64", |v| v.integer().and_then(|n| n.try_into().ok()))
    }
    /// A value in f32 or f64.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.typed(key, "f32", |v| match *v {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        })
    }
    /// Yes or no.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.typed(key, "bool", |v| match *v {
            Value::Bool(v) => Some(v),
            _ => None,
        })
    }
    /// Texts.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn strings(&self, key: &str) -> Result<&[String]> {
        self.typed(key, "array of string", |v| match v {
            Value::Array(Array::String(v)) => Some(v.as_slice()),
            _ => None,
        })
    }
    /// Values in f32.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn f32s(&self, key: &str) -> Result<&[f32]> {
        self.typed(key, "array of f32", |v| match v {
            Value::Array(Array::F32(v)) => Some(v.as_slice()),
            _ => None,
        })
    }
    /// Numbers of any integer type, if all fit.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn u32s(&self, key: &str) -> Result<Vec<u32>> {
        self.typed(key, "array of u32", |v| match v {
            Value::Array(a) => a.integers(),
            _ => None,
        })
    }
    /// Numbers of any integer type, if all fit.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn i32s(&self, key: &str) -> Result<Vec<i32>> {
        self.typed(key, "array of i32", |v| match v {
            Value::Array(a) => a.integers(),
            _ => None,
        })
    }
}

impl std::fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entries = self.metadata.len();
        let tensors = self.tensors.len();
        write!(f, "GgufFile({}, {entries} entries, {tensors} tensors)", self.path.display())
    }
}
