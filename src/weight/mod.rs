//! [`Weight`]: a frozen matrix in its storage format, below every adapter.
//!
//! A method never sees the format: the ops that read weights decode them where they load them. Rows are kept in
//! shards that fit one GPU binding, so that an output head larger than a binding works.

mod builder;
mod decode;
mod dots;
mod encode;
mod fit;
mod format;
mod sample;

use builder::Source;
pub use builder::WeightBuilder;
use dots::Input;
pub use format::Format;
pub(crate) use sample::sample;

use crate::{DType, Device, Error, Result, Tensor};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Rows `first .. first + rows` of a weight.
///
/// `data` holds values `[rows, cols]` in f32 (f64 on the reference device), or packed words
/// `[rows, row_words]` for the other formats.
#[derive(Debug, Clone)]
pub struct Shard {
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) data: Tensor,
}

/// Rows `first .. first + rows` of a weight as they are packed.
pub(crate) struct Packed<'a> {
    pub first: usize,
    pub rows: usize,
    pub words: &'a [u32],
}

/// A frozen matrix `[rows, cols]`, row-major, in its storage format. Cloning shares it.
#[derive(Clone)]
pub struct Weight(Arc<Inner>);

struct Inner {
    rows: usize,
    cols: usize,
    format: Format,
    device: Device,
    shards: Vec<Shard>,
}

/// Rows of a made-up weight before they repeat.
const DISTINCT_ROWS: usize = 64;

/// Largest shard where the device allows more.
const MAX_SHARD_BYTES: u64 = 1 << 30;

/// Bytes that one shard may take on a device.
fn shard_limit(device: &Device) -> u64 {
    match device {
        Device::Gpu(g) => g.largest_binding().min(MAX_SHARD_BYTES),
        _ => MAX_SHARD_BYTES,
    }
}

fn refuse<T>(expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Result<T> {
    Err(Error::shape("weight", expected, found))
}

fn not_in_blocks<T>(format: Format, cols: usize) -> Result<T> {
    refuse(format!("columns in blocks of {}, as {} has", format.block_len(), format.name()), cols)
}

impl Weight {
    /// Stores values `[rows, cols]` on a device: [`from_values`](Weight::from_values) at once.
    ///
    /// # Errors
    /// Those of [`build`](WeightBuilder::build).
    pub fn new(device: &Device, rows: usize, cols: usize, values: &[f32], format: Format) -> Result<Self> {
        Self::from_values(device, [rows, cols], values).store_as(format).build()
    }

    /// A weight `[rows, cols]` from values; it is stored in f32 where nothing else is said.
    pub fn from_values<'a>(device: &'a Device, dims: [usize; 2], values: &'a [f32]) -> WeightBuilder<'a> {
        WeightBuilder::new(device, dims, Source::Values(values), Format::F32)
    }

    /// A weight `[rows, cols]` from its bytes as they stand in a file: little-endian values, or ggml's blocks. It is
    /// stored as they are where nothing else is said.
    ///
    /// ```
    /// use mixlora::{Device, Format, Weight};
    /// // One block of Q8_0: the scale 0.5 as an f16, then 32 signed bytes.
    /// let mut bytes = vec![0x00, 0x38];
    /// bytes.extend((0..32).map(|i| (i - 16) as i8 as u8));
    /// let w = Weight::from_bytes(&Device::cpu(), [1, 32], &bytes, Format::Q8_0).build()?;
    /// assert_eq!(w.to_f32()?[..3], [-8.0, -7.5, -7.0]);
    /// let wide = Weight::from_bytes(&Device::cpu(), [1, 32], &bytes, Format::Q8_0).store_as(Format::F32).build()?;
    /// assert_eq!((wide.format(), wide.to_f32()?), (Format::F32, w.to_f32()?));
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    pub fn from_bytes<'a>(
        device: &'a Device,
        dims: [usize; 2],
        bytes: &'a [u8],
        format: Format,
    ) -> WeightBuilder<'a> {
        WeightBuilder::new(device, dims, Source::Bytes(bytes, format), format)
    }

    /// Bytes of a row.
    fn raw_row_bytes([rows, cols]: [usize; 2], bytes: &[u8], format: Format) -> Result<usize> {
        let name = format.name();
        if !cols.is_multiple_of(format.block_len()) {
            return not_in_blocks(format, cols);
        }
        let row_bytes = format.row_bytes(cols);
        match row_bytes.filter(|b| b.checked_mul(rows) == Some(bytes.len())) {
            // Empty rows could be as many as one likes.
            Some(0) if rows > crate::shape::MAX_ELEMENTS => {
                refuse(format!("at most {} empty rows", crate::shape::MAX_ELEMENTS), rows)
            }
            Some(b) => Ok(b),
            None => refuse(format!("the bytes of {name} [{rows}, {cols}]"), bytes.len()),
        }
    }

    /// A weight from packed rows, in parts that follow each other.
    ///
    /// # Errors
    /// The parts have not the size of `[rows, cols]`, or the device refuses it.
    pub(crate) fn from_packed(
        device: &Device,
        [rows, cols]: [usize; 2],
        parts: &[&[u32]],
        format: Format,
    ) -> Result<Self> {
        let row_words = format.row_words(cols).max(1);
        let packed: Vec<&[u32]> = parts.iter().flat_map(|part| part.chunks_exact(row_words)).collect();
        if packed.len() != rows {
            return refuse(format!("{rows} packed rows"), packed.len());
        }
        Self::build(device, rows, cols, format, shard_limit(device), |row, words| {
            words.copy_from_slice(packed[row]);
        })
    }

    /// The rows of each shard as they are packed, on the CPU; nothing of f32.
    pub(crate) fn packed(&self) -> impl Iterator<Item = Packed<'_>> {
        let shards = self.shards().iter().filter(|shard| shard.data.dtype() == DType::U32);
        shards.map(|shard| Packed { first: shard.first, rows: shard.rows, words: shard.data.u32() })
    }

    /// A packed weight of the CPU on another device.
    ///
    /// # Errors
    /// The device refuses it.
    pub(crate) fn to_device(&self, device: &Device) -> Result<Self> {
        let parts: Vec<&[u32]> = self.packed().map(|part| part.words).collect();
        Self::from_packed(device, [self.rows(), self.cols()], &parts, self.format())
    }

    /// A weight of made-up values around zero with a deviation of about one; its rows repeat.
    pub(crate) fn made_up(
        device: &Device,
        [rows, cols]: [usize; 2],
        format: Format,
        name: &str,
    ) -> Result<Self> {
        let distinct = rows.clamp(1, DISTINCT_ROWS);
        let bytes = sample(format, distinct, cols, crc32fast::hash(name.as_bytes()) as u64);
        let row_bytes = bytes.len() / distinct;
        Self::build(device, rows, cols, format, shard_limit(device), |row, words| {
            format.pack(&bytes[row % distinct * row_bytes..][..row_bytes], words);
        })
    }

    /// Rows come from `row(index, packed words to write)`.
    fn build(
        device: &Device,
        rows: usize,
        cols: usize,
        format: Format,
        shard_bytes: u64,
        row: impl Fn(usize, &mut [u32]) + Sync,
    ) -> Result<Self> {
        let row_words = format.row_words(cols);
        let per_shard = match row_words {
            0 => rows.max(1),
            _ => (shard_bytes / (4 * row_words as u64)) as usize,
        };
        if per_shard == 0 {
            let name = format.name();
            return refuse(
                format!("rows of at most {shard_bytes} bytes"),
                format!("{cols} values of {name}"),
            );
        }
        let mut shards = Vec::new();
        let mut first = 0;
        while first < rows || shards.is_empty() {
            let n = per_shard.min(rows - first);
            let fill = |words: &mut [u32]| {
                let rows = words.par_chunks_mut(row_words.max(1)).with_min_len(rows_per_task(cols));
                rows.enumerate().for_each(|(i, words)| row(first + i, words));
            };
            let data = match (device, format) {
                // The reference computes on what the other lanes decode.
                (Device::Reference, _) => {
                    let mut words = vec![0; n * row_words];
                    fill(&mut words);
                    Tensor::from_f32(device, &[n, cols], &decode_rows(format, [n, cols], &words))
                }
                (_, Format::F32) => Tensor::from_words(device, &[n, cols], DType::F32, fill),
                _ => Tensor::from_words(device, &[n, row_words], DType::U32, fill),
            };
            shards.push(Shard { first, rows: n, data: data? });
            first += n;
        }
        Ok(Weight(Arc::new(Inner { rows, cols, format, device: device.clone(), shards })))
    }

    /// All values, `[rows, cols]`; on a GPU this submits and waits.
    ///
    /// # Errors
    /// The device failed.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(self.0.rows * self.0.cols);
        for shard in self.shards() {
            match shard.data.dtype() {
                DType::F32 => all.extend(shard.data.to_f32()?),
                DType::U32 => {
                    let words = shard.data.to_u32()?;
                    all.extend(decode_rows(self.0.format, [shard.rows, self.0.cols], &words));
                }
            }
        }
        Ok(all)
    }

    /// The same weight in another format, on the same device; for `Format::F32` the values are unchanged.
    ///
    /// # Errors
    /// `cols` is not a multiple of the block length, a value is too large for the format, or the device failed.
    pub fn with_format(&self, format: Format) -> Result<Self> {
        let Inner { rows, cols, ref device, .. } = *self.0;
        if format == self.0.format {
            return Ok(self.clone());
        }
        Self::new(device, rows, cols, &self.to_f32()?, format)
    }

    /// Number of rows: outputs of a linear layer.
    pub fn rows(&self) -> usize {
        self.0.rows
    }
    /// Number of columns: inputs of a linear layer.
    pub fn cols(&self) -> usize {
        self.0.cols
    }
    /// Storage format.
    pub fn format(&self) -> Format {
        self.0.format
    }
    /// Where it lives.
    pub fn device(&self) -> &Device {
        &self.0.device
    }
    /// The row shards, in order.
    pub fn shards(&self) -> &[Shard] {
        &self.0.shards
    }
    /// Bytes it takes.
    pub fn bytes(&self) -> u64 {
        4 * (self.0.rows * self.0.format.row_words(self.0.cols)) as u64
    }

    /// Rows of a shard as f32, on the CPU; only formats other than f32 are copied.
    pub(crate) fn decode<'a>(&self, shard: &'a Shard, rows: Range<usize>) -> Cow<'a, [f32]> {
        let cols = self.0.cols;
        match shard.data.dtype() {
            DType::F32 => Cow::Borrowed(&shard.data.f32()[rows.start * cols..rows.end * cols]),
            DType::U32 => Cow::Owned(decode_rows(self.0.format, [rows.len(), cols], self.words(shard, rows))),
        }
    }

    /// The same, into `out`.
    pub(crate) fn decode_into(&self, shard: &Shard, rows: Range<usize>, out: &mut [f32]) {
        let cols = self.0.cols;
        match shard.data.dtype() {
            DType::F32 => out.copy_from_slice(&shard.data.f32()[rows.start * cols..rows.end * cols]),
            DType::U32 => decode_to(self.0.format, cols, self.words(shard, rows), out),
        }
    }

    /// One row of a shard on this thread, on the CPU.
    pub(crate) fn decode_row(&self, shard: &Shard, row: usize, out: &mut [f32]) {
        match shard.data.dtype() {
            DType::F32 => out.copy_from_slice(&shard.data.f32()[row * out.len()..][..out.len()]),
            DType::U32 => self.0.format.decode(self.words(shard, row..row + 1), out),
        }
    }

    /// `m` rows of `x` `[m, cols]`, for [`dots`](Weight::dots).
    pub(crate) fn input<'a>(&self, x: &'a [f32], m: usize) -> Input<'a> {
        self.0.format.input(x, m)
    }

    /// Inner products of rows of a shard with those of `x`, into `y` `[rows, m]`, on the CPU.
    pub(crate) fn dots(&self, shard: &Shard, rows: Range<usize>, x: &Input<'_>, y: &mut [f32]) {
        let cols = self.0.cols;
        let words = match shard.data.dtype() {
            DType::F32 => bytemuck::cast_slice(&shard.data.f32()[rows.start * cols..rows.end * cols]),
            DType::U32 => self.words(shard, rows),
        };
        self.0.format.dots(cols, words, x, y);
    }

    /// The shard that has a row.
    pub(crate) fn shard_of(&self, row: usize) -> Option<&Shard> {
        let after = self.0.shards.partition_point(|s| s.first <= row);
        self.0.shards[..after].last().filter(|s| row < s.first + s.rows)
    }

    fn words<'a>(&self, shard: &'a Shard, rows: Range<usize>) -> &'a [u32] {
        let n = self.0.format.row_words(self.0.cols);
        &shard.data.u32()[rows.start * n..rows.end * n]
    }
}

/// The values of `[rows, cols]` from bytes as they stand in a file.
pub(crate) fn values(rows: usize, cols: usize, bytes: &[u8], format: Format) -> Result<Vec<f32>> {
    let row_bytes = Weight::raw_row_bytes([rows, cols], bytes, format)?;
    let mut out = vec![0.0; rows * cols];
    let rows = out.par_chunks_mut(cols.max(1)).zip(bytes.par_chunks(row_bytes.max(1)));
    rows.with_min_len(rows_per_task(cols)).for_each_init(
        || vec![0; format.row_words(cols)],
        |words, (out, row)| {
            format.pack(row, words);
            format.decode(words, out);
        },
    );
    Ok(out)
}

/// Rows of one parallel task.
fn rows_per_task(cols: usize) -> usize {
    (16_384 / cols.max(1)).max(1)
}

fn decode_to(format: Format, cols: usize, words: &[u32], out: &mut [f32]) {
    let row_words = format.row_words(cols).max(1);
    out.par_chunks_mut(cols.max(1))
        .zip(words.par_chunks(row_words))
        .with_min_len(rows_per_task(cols))
        .for_each(|(out, row)| format.decode(row, out));
}

fn decode_rows(format: Format, [rows, cols]: [usize; 2], words: &[u32]) -> Vec<f32> {
    let mut out = vec![0.0; rows * cols];
    decode_to(format, cols, words, &mut out);
    out
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Inner { rows, cols, format, device, shards } = &*self.0;
        write!(
            formatter,
            "Weight({} [{rows}, {cols}] in {} shards on {})",
            format.name(),
            shards.len(),
            device.name()
        )
    }
}

/// A frozen linear layer: `y = x W^T + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Weight,
    /// `[out]`
    pub bias: Option<Tensor>,
}

#[cfg(test)]
mod tests;
