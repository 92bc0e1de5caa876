//! Writing GGUF files, version 3.

use super::parse::type_number;
use super::{Array, DEFAULT_ALIGNMENT, Value};
use crate::atomic;
use crate::{Error, Format, Result};
use rayon::prelude::*;
use std::io::Write;
use std::path::Path;

/// Values that are encoded before they are written: 4 MiB of f32.
const AT_ONCE: usize = 1 << 20;

/// The values of a tensor, made when it is its turn to be written.
type Values<'a> = Box<dyn FnOnce() -> Result<Vec<f32>> + 'a>;

/// A GGUF file under construction; [`GgufFile`](super::GgufFile) has an example.
#[derive(Default)]
pub struct GgufWriter<'a> {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor<'a>>,
}

struct Tensor<'a> {
    name: String,
    /// Innermost first.
    dims: Vec<usize>,
    format: Format,
    values: Values<'a>,
}

impl Tensor<'_> {
    /// Bytes of all rows.
    fn bytes(&self) -> Result<usize> {
        let cols = self.dims.first().copied().unwrap_or(1);
        let rows = self.dims.iter().skip(1).product::<usize>();
        let bytes = self.format.row_bytes(cols).and_then(|row| row.checked_mul(rows));
        bytes.ok_or_else(|| {
            let name = self.format.name();
            Error::refused(&self.name, format!("rows of {cols} values are no whole blocks of {name}"))
        })
    }
}

impl<'a> GgufWriter<'a> {
    /// Adds an entry of metadata.
    pub fn set(&mut self, key: &str, value: Value) {
        self.metadata.push((key.into(), value));
    }

    /// Adds a tensor in f32; axis lengths innermost first.
    pub fn tensor(&mut self, name: String, dims: Vec<usize>, values: Vec<f32>) {
        self.tensor_with(name, dims, Format::F32, move || Ok(values));
    }

    /// Adds a tensor in a format. Its values are made when it is written, and gone behind it.
    pub fn tensor_with(
        &mut self,
        name: String,
        dims: Vec<usize>,
        format: Format,
        values: impl FnOnce() -> Result<Vec<f32>> + 'a,
    ) {
        self.tensors.push(Tensor { name, dims, format, values: Box::new(values) });
    }

    /// Writes the file atomically.
    ///
    /// # Errors
    /// The values of a tensor are not as many as its axes say, or too large for its format; or the disk refuses.
    pub fn write(self, path: &Path) -> Result<()> {
        let header = self.header()?;
        atomic::write_with(path, |out| {
            let fail = |error: std::io::Error| Error::file(path, format!("cannot be written: {error}"));
            let mut at = header.len();
            out.write_all(&header).map_err(fail)?;
            for tensor in self.tensors {
                let zeros = [0; DEFAULT_ALIGNMENT];
                let padding = at.next_multiple_of(DEFAULT_ALIGNMENT) - at;
                out.write_all(&zeros[..padding]).map_err(fail)?;
                at += padding + tensor.bytes()?;
                tensor.write(out, path)?;
            }
            Ok(())
        })
    }

    /// What stands before the values.
    fn header(&self) -> Result<Vec<u8>> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_text(&mut out, key);
            put_value(&mut out, value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_text(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|length| out.extend((*length as u64).to_le_bytes()));
            out.extend(type_number(tensor.format).to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.bytes()?).next_multiple_of(DEFAULT_ALIGNMENT);
        }
        Ok(out)
    }
}

impl Tensor<'_> {
    fn write(self, out: &mut dyn Write, path: &Path) -> Result<()> {
        let Tensor { name, dims, format, values } = self;
        let cols = dims.first().copied().unwrap_or(1).max(1);
        let count = dims.iter().product::<usize>();
        let row_bytes = format.row_bytes(cols).unwrap_or_default();
        let values = values()?;
        if values.len() != count {
            return Err(Error::refused(&name, format!("has {} values, not {count}", values.len())));
        }
        let rows = (AT_ONCE / cols).max(1);
        let mut bytes = vec![0; rows * row_bytes];
        for values in values.chunks(rows * cols) {
            let bytes = &mut bytes[..values.len() / cols * row_bytes];
            let encoded = values.par_chunks(cols).zip(bytes.par_chunks_mut(row_bytes.max(1)));
            if !encoded.map(|(values, bytes)| format.encode(values, bytes)).reduce(|| true, |a, b| a && b) {
                return Err(Error::refused(&name, format!("has values that {} cannot hold", format.name())));
            }
            out.write_all(bytes).map_err(|error| Error::file(path, format!("cannot be written: {error}")))?;
        }
        Ok(())
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The number of the value's type, and the value.
fn put_value(out: &mut Vec<u8>, value: &Value) {
    let (number, bytes): (u32, &[u8]) = match value {
        Value::U8(v) => (0, &v.to_le_bytes()),
        Value::I8(v) => (1, &v.to_le_bytes()),
        Value::U16(v) => (2, &v.to_le_bytes()),
        Value::I16(v) => (3, &v.to_le_bytes()),
        Value::U32(v) => (4, &v.to_le_bytes()),
        Value::I32(v) => (5, &v.to_le_bytes()),
        Value::F32(v) => (6, &v.to_le_bytes()),
        Value::Bool(v) => (7, &[u8::from(*v)]),
        Value::U64(v) => (10, &v.to_le_bytes()),
        Value::I64(v) => (11, &v.to_le_bytes()),
        Value::F64(v) => (12, &v.to_le_bytes()),
        Value::String(text) => {
            out.extend(8u32.to_le_bytes());
            return put_text(out, text);
        }
        Value::Array(array) => {
            out.extend(9u32.to_le_bytes());
            return put_array(out, array);
        }
    };
    out.extend(number.to_le_bytes());
    out.extend(bytes);
}

/// The number of the elements' type, how many there are, and the elements.
fn put_array(out: &mut Vec<u8>, array: &Array) {
    let mut put = |number: u32, count: usize, bytes: &[u8]| {
        out.extend(number.to_le_bytes());
        out.extend((count as u64).to_le_bytes());
        out.extend(bytes);
    };
    match array {
        Array::U8(v) => put(0, v.len(), v),
        Array::I8(v) => put(1, v.len(), bytemuck::cast_slice(v)),
        Array::U16(v) => put(2, v.len(), bytemuck::cast_slice(v)),
        Array::I16(v) => put(3, v.len(), bytemuck::cast_slice(v)),
        Array::U32(v) => put(4, v.len(), bytemuck::cast_slice(v)),
        Array::I32(v) => put(5, v.len(), bytemuck::cast_slice(v)),
        Array::F32(v) => put(6, v.len(), bytemuck::cast_slice(v)),
        Array::U64(v) => put(10, v.len(), bytemuck::cast_slice(v)),
        Array::I64(v) => put(11, v.len(), bytemuck::cast_slice(v)),
        Array::F64(v) => put(12, v.len(), bytemuck::cast_slice(v)),
        Array::Bool(v) => put(7, v.len(), &v.iter().map(|v| u8::from(*v)).collect::<Vec<_>>()),
        Array::String(v) => {
            put(8, v.len(), &[]);
            v.iter().for_each(|text| put_text(out, text));
        }
        Array::Array(v) => {
            put(9, v.len(), &[]);
            v.iter().for_each(|array| put_array(out, array));
        }
    }
}
