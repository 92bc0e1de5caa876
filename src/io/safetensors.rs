//! Reading safetensors files and sharded models. The audited `safetensors` crate parses the headers; tensors are decoded
//! from the mapped files on demand. docs/FORMATS.md lists the limits.

use super::mapped::{Bytes, pickle};
use super::outline::{Outline, Unique};
use super::{PartName, RawTensor, cannot_read, compare_names, is_file_name, listed, missing};
use crate::{Device, Error, Format, Result, Weight, weight};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// The name of the format in messages.
const KIND: &str = "safetensors";
/// The largest index or header in bytes; those of the largest models have a few MiB.
const MAX_HEADER_BYTES: usize = 16 << 20;

/// The place of a tensor.
struct Entry {
    file: usize,
    dtype: Dtype,
    dims: Vec<usize>,
    range: Range<usize>,
}

/// A safetensors file, or a model in several: tensors and metadata by name.
///
/// ```
/// use mixlora::io::{Checkpoint, Named, safetensors_bytes};
/// let folder = tempfile::tempdir()?;
/// let tensor = Named { name: "layer.weight".into(), dims: vec![2, 3], values: vec![0.5; 6] };
/// std::fs::write(folder.path().join("model.safetensors"), safetensors_bytes(vec![tensor])?)?;
/// let checkpoint = Checkpoint::open(folder.path())?;
/// assert_eq!(checkpoint.dims("layer.weight")?, [2, 3]);
/// assert_eq!(checkpoint.values_f32("layer.weight")?, [0.5; 6]);
/// // Errors name the file and the most similar name.
/// let error = checkpoint.dims("layers.weight").unwrap_err().to_string();
/// assert!(error.contains("there is 'layer.weight'"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<Bytes>,
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Entry>,
    unlisted: Vec<String>,
    passed_over: Option<PathBuf>,
}

impl Checkpoint {
    /// Opens a `.safetensors` file, an `index.json` of several, or a folder that has `model.safetensors`,
    /// `model.safetensors.index.json`, or a single other `.safetensors` file, in this order of precedence as in
    /// transformers.
    ///
    /// # Errors
    /// A file cannot be read or is not a safetensors file (a Git-LFS pointer and pickle files are recognised), or the
    /// index does not fit the files; the error names the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            return Self::open_folder(path);
        }
        if path.to_string_lossy().ends_with(".json") {
            return Self::open_index(path);
        }
        let mut checkpoint = Self::empty(path);
        checkpoint.add(path, Bytes::open(path, KIND)?, |_| true)?;
        Ok(checkpoint)
    }

    /// Opens a safetensors file from bytes in memory; messages call it `name`.
    ///
    /// # Errors
    /// The bytes are not a safetensors file.
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Self> {
        let path = name.as_ref();
        let mut checkpoint = Self::empty(path);
        checkpoint.add(path, Bytes::Owned(bytes), |_| true)?;
        Ok(checkpoint)
    }

    fn empty(path: &Path) -> Self {
        Checkpoint {
            path: path.to_path_buf(),
            files: vec![],
            metadata: BTreeMap::new(),
            tensors: BTreeMap::new(),
            unlisted: vec![],
            passed_over: None,
        }
    }

    fn open_folder(path: &Path) -> Result<Self> {
        let index = Some(path.join(INDEX)).filter(|path| path.is_file());
        if path.join(SINGLE).is_file() {
            return Ok(Checkpoint { passed_over: index, ..Self::open(path.join(SINGLE))? });
        }
        if let Some(index) = index {
            return Self::open(index);
        }
        let entries = std::fs::read_dir(path).map_err(cannot_read(path))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
        let files_ending = |endings: &[&str]| -> Vec<&PathBuf> {
            let ends = |path: &&PathBuf| {
                path.extension().is_some_and(|found| endings.iter().any(|ending| found == *ending))
            };
            files.iter().filter(ends).collect()
        };
        match (&files_ending(&["safetensors"])[..], &files_ending(&["bin", "pt", "pth", "ckpt"])[..]) {
            ([one], _) => match PartName::parse(one).filter(|part| part.count > 1) {
                None => Self::open(one),
                Some(PartName { number, count, .. }) => Err(Error::file(
                    one,
                    format!("is part {number} of {count}, and there is no {INDEX}; fetch the whole folder"),
                )),
            },
            ([], [file, ..]) => Err(pickle(file)),
            ([], []) => Err(Error::file(path, format!("has no {SINGLE}"))),
            (many, _) => {
                let names: Vec<_> = many.iter().filter_map(|path| path.file_name()?.to_str()).collect();
                let count = many.len();
                let names = listed(&names);
                let what = format!("has {count} .safetensors files, no {SINGLE} and no {INDEX}: {names}");
                Err(Error::file(path, what))
            }
        }
    }

    fn open_index(path: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: Unique<String>,
        }
        let refusal = |what: String| Error::file(path, what);
        let bytes = Bytes::open(path, "JSON")?;
        if bytes.len() > MAX_HEADER_BYTES {
            return Err(refusal(format!("has {} bytes, at most {MAX_HEADER_BYTES} are read", bytes.len())));
        }
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|error| refusal(format!("not an index of tensors: {error}")))?;
        let map = index.weight_map.0;
        let shards: BTreeSet<&str> = map.values().map(String::as_str).collect();
        for shard in &shards {
            if !is_file_name(shard) {
                return Err(refusal(format!(
                    "names the file '{shard}', which is not a file of the same folder"
                )));
            }
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let absent: Vec<&str> =
            shards.iter().filter(|shard| !folder.join(shard).is_file()).copied().collect();
        if !absent.is_empty() {
            return Err(refusal(format!("{} files are missing: {}", absent.len(), listed(&absent))));
        }
        let mut checkpoint = Self::empty(path);
        for shard in shards {
            let path = &folder.join(shard);
            let listed_here = |name: &str| map.get(name).is_some_and(|listed| listed == shard);
            checkpoint.add(path, Bytes::open(path, KIND)?, listed_here)?;
        }
        let absent: Vec<&str> = map.keys().map(String::as_str).filter(|name| !checkpoint.has(name)).collect();
        if !absent.is_empty() {
            let what = format!("{} tensors are not in the files named: {}", absent.len(), listed(&absent));
            return Err(refusal(what));
        }
        Ok(checkpoint)
    }

    /// Reads the header of a file and takes the tensors that `wanted` accepts.
    fn add(&mut self, path: &Path, bytes: Bytes, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let refusal = |what: String| Error::file(path, what);
        let Some((length, rest)) = bytes.split_first_chunk() else {
            return Err(refusal(format!("not a safetensors file ({} bytes)", bytes.len())));
        };
        // The outline is checked before the library copies the header. The library refuses a header that goes beyond
        // the end of the file.
        let header = usize::try_from(u64::from_le_bytes(*length)).ok().and_then(|length| rest.get(..length));
        if let Some(header) = header {
            if header.len() > MAX_HEADER_BYTES {
                let length = header.len();
                return Err(refusal(format!(
                    "has a header of {length} bytes, at most {MAX_HEADER_BYTES} are read"
                )));
            }
            serde_json::from_slice::<Outline>(header)
                .map_err(|error| refusal(format!("not a valid safetensors file: {error}")))?;
        }
        let (header, about) = SafeTensors::read_metadata(&bytes).map_err(|error| {
            let hint = match error {
                SafeTensorError::MetadataIncompleteBuffer => {
                    "; the file was cut short or something was appended"
                }
                _ => "",
            };
            refusal(format!("not a valid safetensors file: {error}{hint}"))
        })?;
        self.metadata.extend(about.metadata().clone().unwrap_or_default());
        for (name, info) in about.tensors() {
            if !wanted(&name) {
                self.unlisted.push(name);
                continue;
            }
            let (first, end) = info.data_offsets;
            let entry = Entry {
                file: self.files.len(),
                dtype: info.dtype,
                dims: info.shape.clone(),
                range: 8 + header + first..8 + header + end,
            };
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(refusal(format!("tensor '{name}' is in another file too")));
            }
        }
        self.unlisted.sort();
        self.files.push(bytes);
        Ok(())
    }

    /// The path of the file, or of the index of several files.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
    /// The tensors in the files that the index does not list; they are not read.
    pub fn unlisted(&self) -> &[String] {
        &self.unlisted
    }
    /// The index in the same folder that `model.safetensors` takes precedence over.
    pub fn passed_over(&self) -> Option<&Path> {
        self.passed_over.as_deref()
    }
    /// Tests whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
    /// Checks that all wanted tensors are present and returns the names of the others.
    ///
    /// # Errors
    /// Tensors are missing; the error lists them.
    pub fn expect_tensors<'a>(&self, wanted: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>> {
        compare_names(&self.path, self.names(), wanted)
    }
    /// A metadata entry.
    ///
    /// # Errors
    /// There is no entry of that name.
    pub fn metadata(&self, key: &str) -> Result<&str> {
        let names = self.metadata.keys().map(String::as_str);
        self.metadata.get(key).map(String::as_str).ok_or_else(|| missing(&self.path, "metadata", key, names))
    }

    fn fail<T>(&self, what: String) -> Result<T> {
        Err(Error::file(&self.path, what))
    }
    fn get(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| missing(&self.path, "tensor", name, self.names()))
    }
    fn shaped(&self, name: &str, dims: &[usize]) -> Result<&Entry> {
        let tensor = self.get(name)?;
        if tensor.dims != dims {
            return self.fail(format!("tensor '{name}' has shape {:?}, expected {dims:?}", tensor.dims));
        }
        Ok(tensor)
    }
    /// Checks the shape of a tensor.
    ///
    /// # Errors
    /// There is no tensor of that name and shape.
    pub fn expect_dims(&self, name: &str, dims: &[usize]) -> Result<()> {
        self.shaped(name, dims).map(|_| ())
    }
    /// The shape of a tensor.
    ///
    /// # Errors
    /// There is no tensor of that name.
    pub fn dims(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.get(name)?.dims)
    }
    /// The stored bytes of a tensor.
    ///
    /// # Errors
    /// There is no tensor of that name.
    pub fn tensor_bytes(&self, name: &str) -> Result<&[u8]> {
        let tensor = self.get(name)?;
        Ok(self.files[tensor.file].get(tensor.range.clone()).unwrap_or_default())
    }
    /// The storage format of a tensor.
    ///
    /// # Errors
    /// There is no tensor of that name, or its type is not f32, f16 or bf16.
    pub fn format(&self, name: &str) -> Result<Format> {
        match self.get(name)?.dtype {
            Dtype::F32 => Ok(Format::F32),
            Dtype::F16 => Ok(Format::F16),
            Dtype::BF16 => Ok(Format::Bf16),
            other => {
                self.fail(format!("tensor '{name}' has type {other:?}, expected values in f32, f16 or bf16"))
            }
        }
    }
    /// The stored bytes of a tensor with its shape and format.
    ///
    /// # Errors
    /// There is no tensor of that name, or its type is not f32, f16 or bf16.
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let format = self.format(name)?;
        let dims = self.dims(name)?;
        let cols = dims.last().copied().unwrap_or(1);
        let rows = dims[..dims.len().saturating_sub(1)].iter().product();
        Ok(RawTensor { rows, cols, axes: dims.len(), format, bytes: self.tensor_bytes(name)? })
    }
    /// A matrix as a weight in its stored format.
    ///
    /// # Errors
    /// There is no matrix of that name, it has another type, or the device refuses it.
    pub fn weight(&self, name: &str, device: &Device) -> Result<Weight> {
        let format = self.format(name)?;
        match *self.dims(name)? {
            [rows, cols] => {
                Weight::from_bytes(device, [rows, cols], self.tensor_bytes(name)?, format).build()
            }
            ref dims => self.fail(format!("tensor '{name}' has shape {dims:?}, expected a matrix")),
        }
    }
    /// The values of a tensor, row-major.
    ///
    /// # Errors
    /// There is no tensor of that name, or its type is not f32, f16 or bf16.
    pub fn values_f32(&self, name: &str) -> Result<Vec<f32>> {
        let format = self.format(name)?;
        let bytes = self.tensor_bytes(name)?;
        weight::values(1, bytes.len() / format.block_bytes(), bytes, format)
    }
    /// The values of a tensor of that shape, row-major.
    ///
    /// # Errors
    /// [`values_f32`](Checkpoint::values_f32) fails, or the shape differs.
    pub fn f32(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        self.shaped(name, dims)?;
        self.values_f32(name)
    }
    /// The values of an f64 tensor of that shape, row-major.
    ///
    /// # Errors
    /// There is no tensor of that name, shape and type.
    pub fn f64(&self, name: &str, dims: &[usize]) -> Result<Vec<f64>> {
        match self.shaped(name, dims)?.dtype {
            Dtype::F64 => Ok(self
                .tensor_bytes(name)?
                .as_chunks()
                .0
                .iter()
                .map(|bytes| f64::from_le_bytes(*bytes))
                .collect()),
            other => self.fail(format!("tensor '{name}' has type {other:?}, expected f64")),
        }
    }
    /// The values of a tensor of that shape in u8, i32 or i64, row-major.
    ///
    /// # Errors
    /// There is no tensor of that name, shape and type.
    pub fn integers(&self, name: &str, dims: &[usize]) -> Result<Vec<i64>> {
        let tensor = self.shaped(name, dims)?;
        let bytes = self.tensor_bytes(name)?;
        match tensor.dtype {
            Dtype::U8 => Ok(bytes.iter().map(|&byte| byte.into()).collect()),
            Dtype::I32 => {
                Ok(bytes.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes).into()).collect())
            }
            Dtype::I64 => Ok(bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()),
            other => self.fail(format!("tensor '{name}' has type {other:?}, expected i32, i64 or u8")),
        }
    }
    /// The values of a tensor of that shape as indices below `bound`.
    ///
    /// # Errors
    /// [`integers`](Checkpoint::integers) fails, or an index is not below `bound`.
    pub fn indices(&self, name: &str, dims: &[usize], bound: usize) -> Result<Vec<u32>> {
        let values = self.integers(name, dims)?;
        let index = |value: i64| u32::try_from(value).ok().filter(|&index| (index as usize) < bound);
        values
            .into_iter()
            .map(|value| match index(value) {
                Some(index) => Ok(index),
                None => self.fail(format!("tensor '{name}' holds {value}, expected 0..{bound}")),
            })
            .collect()
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files = self.files.len();
        let tensors = self.tensors.len();
        write!(formatter, "Checkpoint({}, {tensors} tensors in {files} files)", self.path.display())
    }
}
