//! Reading safetensors files and models in several of them. Headers go through the audited `safetensors` crate; data
//! stays in the mapped files until it is asked for. docs/FORMATS.md has the limits.

use super::mapped::{Bytes, pickle};
use super::outline::{Outline, Unique};
use super::{PartName, RawTensor, compare_names, is_file_name, listed, missing};
use crate::{Device, Error, Format, Result, Weight, weight};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// What a file of tensors is called in messages.
const KIND: &str = "safetensors";
/// Bytes of an index or a header at most; the largest models have a few MiB.
const MAX_HEADER_BYTES: usize = 16 << 20;

/// A tensor's place.
struct Entry {
    file: usize,
    dtype: Dtype,
    dims: Vec<usize>,
    range: Range<usize>,
}

/// One safetensors file, or a model in several: tensors and metadata by name.
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
    /// `model.safetensors.index.json`, or a single other `.safetensors` file. Where there are several of these, the
    /// first counts, as in transformers.
    ///
    /// # Errors
    /// Something cannot be read, is no safetensors file (a Git-LFS pointer and pickle files are recognised), or the
    /// index does not fit the files; the error names the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            return Self::open_folder(path);
        }
        if path.to_string_lossy().ends_with(".json") {
            Self::open_index(path)
        } else {
            let mut all = Self::empty(path);
            all.add(path, Bytes::open(path, KIND)?, |_| true)?;
            Ok(all)
        }
    }

    /// The tensors of one safetensors file in memory; `name` is for messages.
    ///
    /// # Errors
    /// The bytes are no safetensors file.
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Self> {
        let path = name.as_ref();
        let mut all = Self::empty(path);
        all.add(path, Bytes::Owned(bytes), |_| true)?;
        Ok(all)
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
        let index = Some(path.join(INDEX)).filter(|p| p.is_file());
        if path.join(SINGLE).is_file() {
            return Ok(Checkpoint { passed_over: index, ..Self::open(path.join(SINGLE))? });
        }
        if let Some(index) = index {
            return Self::open(index);
        }
        let entries =
            std::fs::read_dir(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        files.sort();
        let ending = |endings: &[&str]| -> Vec<&PathBuf> {
            let has = |p: &&PathBuf| p.extension().is_some_and(|e| endings.iter().any(|x| e == *x));
            files.iter().filter(has).collect()
        };
        match (&ending(&["safetensors"])[..], &ending(&["bin", "pt", "pth", "ckpt"])[..]) {
            ([one], _) => match PartName::of(one).filter(|part| part.count > 1) {
                None => Self::open(one),
                Some(PartName { number, count, .. }) => Err(Error::file(
                    one,
                    format!("is part {number} of {count}, and there is no {INDEX}; fetch the whole folder"),
                )),
            },
            ([], [file, ..]) => Err(pickle(file)),
            ([], []) => Err(Error::file(path, format!("has no {SINGLE}"))),
            (many, _) => {
                let names: Vec<_> = many.iter().filter_map(|p| p.file_name()?.to_str()).collect();
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
        let fail = |what: String| Error::file(path, what);
        let bytes = Bytes::open(path, "JSON")?;
        if bytes.len() > MAX_HEADER_BYTES {
            return Err(fail(format!("has {} bytes, at most {MAX_HEADER_BYTES} are read", bytes.len())));
        }
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|e| fail(format!("not an index of tensors: {e}")))?;
        let map = index.weight_map.0;
        let shards: BTreeSet<&str> = map.values().map(String::as_str).collect();
        for shard in &shards {
            if !is_file_name(shard) {
                return Err(fail(format!(
                    "names the file '{shard}', which is not a file of the same folder"
                )));
            }
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let absent: Vec<&str> = shards.iter().filter(|s| !folder.join(s).is_file()).copied().collect();
        if !absent.is_empty() {
            return Err(fail(format!("{} files are missing: {}", absent.len(), listed(&absent))));
        }
        let mut all = Self::empty(path);
        for shard in shards {
            let path = &folder.join(shard);
            all.add(path, Bytes::open(path, KIND)?, |name| map.get(name).is_some_and(|s| s == shard))?;
        }
        let absent: Vec<&str> =
            map.keys().filter(|n| !all.tensors.contains_key(*n)).map(String::as_str).collect();
        match absent.len() {
            0 => Ok(all),
            n => Err(fail(format!("{n} tensors are not in the files named: {}", listed(&absent)))),
        }
    }

    /// Reads the header of a file and takes the tensors that `wanted` accepts.
    fn add(&mut self, path: &Path, bytes: Bytes, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let fail = |what: String| Error::file(path, what);
        let Some((length, rest)) = bytes.split_first_chunk() else {
            return Err(fail(format!("not a safetensors file ({} bytes)", bytes.len())));
        };
        // Looked over before the library makes its copies. It refuses a header that does not end in the file.
        let header = usize::try_from(u64::from_le_bytes(*length)).ok().and_then(|length| rest.get(..length));
        if let Some(header) = header {
            if header.len() > MAX_HEADER_BYTES {
                let length = header.len();
                return Err(fail(format!(
                    "has a header of {length} bytes, at most {MAX_HEADER_BYTES} are read"
                )));
            }
            serde_json::from_slice::<Outline>(header)
                .map_err(|e| fail(format!("not a valid safetensors file: {e}")))?;
        }
        let (header, about) = SafeTensors::read_metadata(&bytes).map_err(|e| {
            let hint = match e {
                SafeTensorError::MetadataIncompleteBuffer => {
                    "; the file was cut short or something was appended"
                }
                _ => "",
            };
            fail(format!("not a valid safetensors file: {e}{hint}"))
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
                return Err(fail(format!("tensor '{name}' is in another file too")));
            }
        }
        self.unlisted.sort();
        self.files.push(bytes);
        Ok(())
    }

    /// Where it was read from: the file, or the index of several.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
    /// Tensors that are in the files, but not in the index: they are not read.
    pub fn unlisted(&self) -> &[String] {
        &self.unlisted
    }
    /// An index in the same folder that was not looked at, since `model.safetensors` is there.
    pub fn passed_over(&self) -> Option<&Path> {
        self.passed_over.as_deref()
    }
    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
    /// Compares the tensors with those wanted and gives back the ones that are too many.
    ///
    /// # Errors
    /// Some are missing; the error lists them.
    pub fn expect_tensors<'a>(&self, wanted: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>> {
        compare_names(&self.path, self.names(), wanted)
    }
    /// A metadata entry.
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
        let t = self.get(name)?;
        if t.dims == dims {
            Ok(t)
        } else {
            self.fail(format!("tensor '{name}' has shape {:?}, expected {dims:?}", t.dims))
        }
    }
    /// Refuses a tensor of another shape.
    ///
    /// # Errors
    /// There is none of that name, or its shape is another.
    pub fn expect_dims(&self, name: &str, dims: &[usize]) -> Result<()> {
        self.shaped(name, dims).map(|_| ())
    }
    /// Shape of a tensor.
    pub fn dims(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.get(name)?.dims)
    }
    /// Bytes of a tensor as they stand in the file.
    pub fn tensor_bytes(&self, name: &str) -> Result<&[u8]> {
        let t = self.get(name)?;
        Ok(self.files[t.file].get(t.range.clone()).unwrap_or_default())
    }
    /// How a tensor's values are stored.
    ///
    /// # Errors
    /// There is none of that name, or its type is not one of f32, f16 and bf16.
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
    /// A tensor with its bytes.
    ///
    /// # Errors
    /// There is none of that name, or its type is not one of f32, f16 and bf16.
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let format = self.format(name)?;
        let dims = self.dims(name)?;
        let cols = dims.last().copied().unwrap_or(1);
        let rows = dims[..dims.len().saturating_sub(1)].iter().product();
        Ok(RawTensor { rows, cols, axes: dims.len(), format, bytes: self.tensor_bytes(name)? })
    }
    /// A matrix as a weight, in the format it has in the file.
    ///
    /// # Errors
    /// There is no matrix of that name, it has another type, or the device refuses it.
    pub fn weight(&self, name: &str, device: &Device) -> Result<Weight> {
        let format = self.format(name)?;
        match *self.dims(name)? {
            [rows, cols] => Weight::from_raw(device, rows, cols, self.tensor_bytes(name)?, format),
            ref dims => self.fail(format!("tensor '{name}' has shape {dims:?}, expected a matrix")),
        }
    }
    /// All values of a tensor, row-major.
    ///
    /// # Errors
    /// There is none of that name, or its type is not one of f32, f16 and bf16.
    pub fn values_f32(&self, name: &str) -> Result<Vec<f32>> {
        let format = self.format(name)?;
        let bytes = self.tensor_bytes(name)?;
        weight::values(1, bytes.len() / format.block_bytes(), bytes, format)
    }
    /// Values of a tensor of that shape.
    ///
    /// # Errors
    /// Those of [`values_f32`](Checkpoint::values_f32), or the shape is another.
    pub fn f32(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        self.shaped(name, dims)?;
        self.values_f32(name)
    }
    /// Values of an f64 tensor of that shape.
    ///
    /// # Errors
    /// There is none of that name, shape and type.
    pub fn f64(&self, name: &str, dims: &[usize]) -> Result<Vec<f64>> {
        match self.shaped(name, dims)?.dtype {
            Dtype::F64 => {
                Ok(self.tensor_bytes(name)?.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
            }
            other => self.fail(format!("tensor '{name}' has type {other:?}, expected f64")),
        }
    }
    /// Integers of a tensor of that shape, in u8, i32 or i64.
    ///
    /// # Errors
    /// There is none of that name, shape and type.
    pub fn integers(&self, name: &str, dims: &[usize]) -> Result<Vec<i64>> {
        let t = self.shaped(name, dims)?;
        let bytes = self.tensor_bytes(name)?;
        match t.dtype {
            Dtype::U8 => Ok(bytes.iter().map(|&b| b.into()).collect()),
            Dtype::I32 => Ok(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect()),
            Dtype::I64 => Ok(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
            other => self.fail(format!("tensor '{name}' has type {other:?}, expected i32, i64 or u8")),
        }
    }
    /// Indices of a tensor of that shape, each below `bound`, in u8, i32 or i64.
    ///
    /// # Errors
    /// Those of [`integers`](Checkpoint::integers), or an index is not below `bound`.
    pub fn indices(&self, name: &str, dims: &[usize], bound: usize) -> Result<Vec<u32>> {
        let values = self.integers(name, dims)?;
        let index = |v: i64| u32::try_from(v).ok().filter(|&i| (i as usize) < bound);
        values
            .into_iter()
            .map(|v| match index(v) {
                Some(i) => Ok(i),
                None => self.fail(format!("tensor '{name}' holds {v}, expected 0..{bound}")),
            })
            .collect()
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files = self.files.len();
        let tensors = self.tensors.len();
        write!(f, "Checkpoint({}, {tensors} tensors in {files} files)", self.path.display())
    }
}
