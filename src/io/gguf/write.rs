//! Writing GGUF files of f32 tensors, version 3.

use super::{Array, DEFAULT_ALIGNMENT, Value};
use crate::atomic;
use crate::{Error, Result};
use std::path::Path;

/// ggml's number of the type f32.
const F32: u32 = 0;

/// A GGUF file under construction; [`GgufFile`](super::GgufFile) has an example.
#[derive(Default)]
pub struct GgufWriter {
    metadata: Vec<(String, Value)>,
    /// Name, axis lengths innermost first, values.
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl GgufWriter {
    /// Adds an entry of metadata.
    pub fn set(&mut self, key: &str, value: Value) {
        self.metadata.push((key.into(), value));
    }
    /// Adds a tensor; axis lengths innermost first.
    pub fn tensor(&mut self, name: String, dims: Vec<usize>, values: Vec<f32>) {
        self.tensors.push((name, dims, values));
    }

    /// Writes the file atomically.
    ///
    /// # Errors
    /// A metadata value has another type than u32, f32, bool, string and arrays of i32 and f32, or the disk refuses.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        let write_text = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        };
        // Of elements of four bytes.
        let write_array = |out: &mut Vec<u8>, kind: u32, bytes: &[u8]| {
            out.extend(9u32.to_le_bytes().into_iter().chain(kind.to_le_bytes()));
            out.extend((bytes.len() as u64 / 4).to_le_bytes());
            out.extend(bytes);
        };
        for (key, value) in &self.metadata {
            write_text(&mut out, key);
            match value {
                Value::U32(value) => out.extend(4u32.to_le_bytes().into_iter().chain(value.to_le_bytes())),
                Value::F32(value) => out.extend(6u32.to_le_bytes().into_iter().chain(value.to_le_bytes())),
                Value::Bool(value) => out.extend(7u32.to_le_bytes().into_iter().chain([u8::from(*value)])),
                Value::String(value) => {
                    out.extend(8u32.to_le_bytes());
                    write_text(&mut out, value);
                }
                Value::Array(Array::I32(values)) => write_array(&mut out, 5, bytemuck::cast_slice(values)),
                Value::Array(Array::F32(values)) => write_array(&mut out, 6, bytemuck::cast_slice(values)),
                other => {
                    let what = format!("'{key}' is of type {}, which is not written", other.kind());
                    return Err(Error::file(path, what));
                }
            }
        }
        let mut offset = 0;
        for (name, dims, values) in &self.tensors {
            write_text(&mut out, name);
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|length| out.extend((*length as u64).to_le_bytes()));
            out.extend(F32.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset = (offset + 4 * values.len()).next_multiple_of(DEFAULT_ALIGNMENT);
        }
        for (_, _, values) in &self.tensors {
            out.resize(out.len().next_multiple_of(DEFAULT_ALIGNMENT), 0);
            out.extend_from_slice(bytemuck::cast_slice(values));
        }
        atomic::write(path, &out)
    }
}
