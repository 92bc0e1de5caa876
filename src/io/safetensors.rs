//! Reading safetensors files, through the audited `safetensors` crate, with errors that say what to do.

use crate::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A tensor of a file, in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTensor {
    pub dims: Vec<usize>,
    pub data: StoredData,
}

/// Values or indices.
#[derive(Debug, Clone, PartialEq)]
pub enum StoredData {
    F32(Vec<f32>),
    I32(Vec<i32>),
}

/// A safetensors file in host memory: tensors and metadata by name.
#[derive(Debug, Clone)]
pub struct TensorFile {
    path: PathBuf,
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, StoredTensor>,
}

impl TensorFile {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is no safetensors file (a Git-LFS pointer is recognised), or holds a type that is not
    /// supported.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |what: String| Error::file(path, what);
        let bytes = std::fs::read(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
        if bytes.starts_with(b"version https://git-lfs") {
            return Err(fail("is a Git-LFS pointer, not the file itself; run `git lfs pull`".into()));
        }
        if bytes.len() < 8 {
            return Err(fail(format!("not a safetensors file ({} bytes)", bytes.len())));
        }
        let bad = |e: safetensors::SafeTensorError| fail(format!("not a valid safetensors file: {e}"));
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(bad)?;
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let file = SafeTensors::deserialize(&bytes).map_err(bad)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let data = decode(view.dtype(), view.data()).ok_or_else(|| {
                fail(format!("tensor '{name}' has type {:?}; f32 and i32 are supported", view.dtype()))
            })?;
            tensors.insert(name.to_string(), StoredTensor { dims: view.shape().to_vec(), data });
        }
        Ok(TensorFile { path: path.to_path_buf(), metadata, tensors })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
    /// A metadata entry.
    pub fn metadata(&self, key: &str) -> Result<&str> {
        let missing = || Error::file(&self.path, format!("metadata '{key}' is missing"));
        self.metadata.get(key).map(String::as_str).ok_or_else(missing)
    }
    fn get(&self, name: &str) -> Result<&StoredTensor> {
        self.tensors.get(name).ok_or_else(|| Error::file(&self.path, format!("tensor '{name}' is missing")))
    }
    /// Shape of a tensor.
    pub fn dims(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.get(name)?.dims)
    }
    fn shaped(&self, name: &str, dims: &[usize]) -> Result<&StoredTensor> {
        let t = self.get(name)?;
        match t.dims == dims {
            true => Ok(t),
            false => Err(Error::file(
                &self.path,
                format!("tensor '{name}' has shape {:?}, expected {dims:?}", t.dims),
            )),
        }
    }
    /// Values of a tensor of that shape.
    pub fn f32(&self, name: &str, dims: &[usize]) -> Result<&[f32]> {
        match &self.shaped(name, dims)?.data {
            StoredData::F32(v) => Ok(v),
            StoredData::I32(_) => {
                Err(Error::file(&self.path, format!("tensor '{name}' is i32, expected f32")))
            }
        }
    }
    /// Indices of a tensor of that shape, each below `bound`.
    pub fn indices(&self, name: &str, dims: &[usize], bound: usize) -> Result<Vec<u32>> {
        let StoredData::I32(v) = &self.shaped(name, dims)?.data else {
            return Err(Error::file(&self.path, format!("tensor '{name}' is f32, expected i32")));
        };
        v.iter()
            .map(|&i| match usize::try_from(i) {
                Ok(n) if n < bound => Ok(i as u32),
                _ => Err(Error::file(&self.path, format!("tensor '{name}' holds {i}, expected 0..{bound}"))),
            })
            .collect()
    }
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Option<StoredData> {
    let words = bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    match dtype {
        Dtype::F32 => Some(StoredData::F32(words.map(f32::from_le_bytes).collect())),
        Dtype::I32 => Some(StoredData::I32(words.map(i32::from_le_bytes).collect())),
        _ => None,
    }
}
