//! Reading GGUF files, versions 2 and 3, little-endian. docs/FORMATS.md has the limits.
//!
//! ggml's docs/gguf.md describes the format. Opening a file reads only its header; tensors are decoded on demand.

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

/// The place of a tensor in its file.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Axis lengths in file order: innermost first.
    pub dims: Vec<usize>,
    /// Storage format.
    pub kind: Format,
    /// Index of the file that holds the tensor, for a model in several parts.
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

/// An open GGUF file, together with the other parts of a split model.
///
/// ```
/// use mixlora::io::GgufFile;
/// use mixlora::io::gguf::{GgufWriter, Value};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.gguf");
/// let mut writer = GgufWriter::default();
/// writer.set("general.architecture", Value::String("llama".into()));
/// // Axis lengths are innermost first: two rows of three values.
/// writer.tensor("weight".into(), vec![3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
/// writer.write(&path)?;
/// let file = GgufFile::open(&path)?;
/// assert_eq!(file.str("general.architecture")?, "llama");
/// assert_eq!(file.tensor("weight")?.rows(), 2);
/// assert_eq!(file.values_f32("weight")?[3], 4.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct GgufFile {
    path: PathBuf,
    version: u32,
    files: Vec<Bytes>,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl GgufFile {
    /// Opens a file and reads its header; the rest is mapped into memory. Any part of a split model
    /// (`name-00001-of-00003.gguf`) opens all parts.
    ///
    /// # Errors
    /// The file cannot be read or breaks a rule of the format; the error names the place. A Git-LFS pointer is
    /// recognised. Parts are missing, or do not fit each other.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        split::open(path.as_ref())
    }

    /// Opens a file from bytes in memory; messages call it `name`.
    ///
    /// # Errors
    /// The same as for [`open`](GgufFile::open).
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Self> {
        split::from_bytes(name.as_ref(), bytes)
    }

    /// Path of the file.
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

    /// Checks that all wanted tensors are present and returns the names of the others.
    ///
    /// # Errors
    /// Tensors are missing; the error lists them.
    pub fn expect_tensors<'a>(&self, wanted: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>> {
        compare_names(&self.path, self.tensors.keys().map(String::as_str), wanted)
    }

    /// The place of a tensor.
    ///
    /// # Errors
    /// There is no tensor of that name.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        let names = || self.tensors.keys().map(String::as_str);
        self.tensors.get(name).ok_or_else(|| missing(&self.path, "tensor", name, names()))
    }

    /// The stored bytes of a tensor.
    ///
    /// # Errors
    /// There is no tensor of that name.
    pub fn tensor_bytes(&self, name: &str) -> Result<&[u8]> {
        let tensor = self.tensor(name)?;
        // The parser has checked the range; only an empty tensor may lie outside of the file.
        Ok(self.files[tensor.file].get(tensor.offset..tensor.offset + tensor.bytes).unwrap_or_default())
    }

    /// A tensor with its bytes.
    ///
    /// # Errors
    /// There is no tensor of that name.
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let tensor = self.tensor(name)?;
        let bytes = self.tensor_bytes(name)?;
        Ok(RawTensor {
            rows: tensor.rows(),
            cols: tensor.cols(),
            axes: tensor.dims.len(),
            format: tensor.kind,
            bytes,
        })
    }

    fn matrix(&self, name: &str) -> Result<(&TensorInfo, &[u8])> {
        let tensor = self.tensor(name)?;
        match tensor.dims.len() {
            2 => Ok((tensor, self.tensor_bytes(name)?)),
            axes => self.fail(format!("tensor '{name}' has {axes} axes, expected a matrix")),
        }
    }

    /// A matrix as a weight in its stored format.
    ///
    /// # Errors
    /// There is no matrix of that name, or the device refuses it.
    pub fn weight(&self, name: &str, device: &Device) -> Result<Weight> {
        let (tensor, bytes) = self.matrix(name)?;
        Weight::from_bytes(device, [tensor.rows(), tensor.cols()], bytes, tensor.kind).build()
    }

    /// Like [`weight`](GgufFile::weight), with row `row_order(i)` of the file as row `i`.
    ///
    /// # Errors
    /// [`weight`](GgufFile::weight) fails, or `row_order` returns a row that does not exist.
    pub fn weight_rows(
        &self,
        name: &str,
        device: &Device,
        row_order: impl Fn(usize) -> usize,
    ) -> Result<Weight> {
        let (tensor, bytes) = self.matrix(name)?;
        Weight::from_bytes(device, [tensor.rows(), tensor.cols()], bytes, tensor.kind).rows(row_order).build()
    }

    /// All values of a tensor, row-major.
    ///
    /// # Errors
    /// There is no tensor of that name.
    pub fn values_f32(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        weight::values(tensor.rows(), tensor.cols(), self.tensor_bytes(name)?, tensor.kind)
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
            Some(value) => Ok(value),
            None => {
                let found = match value.integer() {
                    Some(number) => format!("{} {number}", value.kind()),
                    None => value.kind().to_string(),
                };
                self.fail(format!("metadata '{key}' is {found}, expected {expected}"))
            }
        }
    }

    /// A string of the metadata.
    ///
    /// # Errors
    /// The entry is missing or has another type; the error names the file, the key and both types.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.typed(key, "string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }
    /// A metadata number of any integer type that fits.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.typed(key, "u32", |value| value.integer().and_then(|number| number.try_into().ok()))
    }
    /// A metadata number of any integer type that fits.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn u64(&self, key: &str) -> Result<u64> {
        self.typed(key, "u64", |value| value.integer().and_then(|number| number.try_into().ok()))
    }
    /// A metadata number in f32 or f64.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.typed(key, "f32", |value| match *value {
            Value::F32(number) => Some(number),
            Value::F64(number) => Some(number as f32),
            _ => None,
        })
    }
    /// A metadata value that is true or false.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.typed(key, "bool", |value| match *value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        })
    }
    /// A metadata array of strings.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn strings(&self, key: &str) -> Result<&[String]> {
        self.typed(key, "array of string", |value| match value {
            Value::Array(Array::String(texts)) => Some(texts.as_slice()),
            _ => None,
        })
    }
    /// A metadata array in f32.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn f32s(&self, key: &str) -> Result<&[f32]> {
        self.typed(key, "array of f32", |value| match value {
            Value::Array(Array::F32(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }
    /// A metadata array of any integer type whose numbers all fit.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn u32s(&self, key: &str) -> Result<Vec<u32>> {
        self.typed(key, "array of u32", |value| match value {
            Value::Array(array) => array.integers(),
            _ => None,
        })
    }
    /// A metadata array of any integer type whose numbers all fit.
    ///
    /// # Errors
    /// See [`str`](GgufFile::str).
    pub fn i32s(&self, key: &str) -> Result<Vec<i32>> {
        self.typed(key, "array of i32", |value| match value {
            Value::Array(array) => array.integers(),
            _ => None,
        })
    }
}

impl std::fmt::Debug for GgufFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entries = self.metadata.len();
        let tensors = self.tensors.len();
        write!(formatter, "GgufFile({}, {entries} entries, {tensors} tensors)", self.path.display())
    }
}
