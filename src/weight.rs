//! [`Weight`]: a frozen matrix in its storage format, below every adapter.
//!
//! A method never sees the format: the ops that read weights decode them where they load them. Rows are kept in
//! shards that fit one GPU binding, so that an output head larger than a binding works.

use crate::{DType, Device, Error, Result, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// How the elements of a [`Weight`] are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    F32,
    F16,
    Bf16,
}

impl Format {
    /// Lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::F16 => "f16",
            Format::Bf16 => "bf16",
        }
    }
    /// 32-bit words of a row of `cols` elements; a row starts at a word.
    pub const fn row_words(self, cols: usize) -> usize {
        match self {
            Format::F32 => cols,
            Format::F16 | Format::Bf16 => cols.div_ceil(2),
        }
    }
    fn encode(self, row: &[f32], out: &mut Vec<u32>) {
        let pair = |p: &[f32], bits: fn(f32) -> u16| {
            bits(p[0]) as u32 | (p.get(1).map_or(0, |&v| bits(v)) as u32) << 16
        };
        match self {
            Format::F32 => out.extend(row.iter().map(|v| v.to_bits())),
            Format::F16 => out.extend(row.chunks(2).map(|p| pair(p, |v| f16::from_f32(v).to_bits()))),
            Format::Bf16 => out.extend(row.chunks(2).map(|p| pair(p, |v| bf16::from_f32(v).to_bits()))),
        }
    }
    fn decode(self, words: &[u32], out: &mut [f32]) {
        let halves = |out: &mut [f32], value: fn(u16) -> f32| {
            for (o, w) in out.chunks_mut(2).zip(words) {
                o[0] = value(*w as u16);
                if let Some(o) = o.get_mut(1) {
                    *o = value((*w >> 16) as u16);
                }
            }
        };
        match self {
            Format::F32 => out.iter_mut().zip(words).for_each(|(o, w)| *o = f32::from_bits(*w)),
            Format::F16 => halves(out, |b| f16::from_bits(b).to_f32()),
            Format::Bf16 => halves(out, |b| bf16::from_bits(b).to_f32()),
        }
    }
}

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

/// Largest shard where the device allows more.
const MAX_SHARD_BYTES: u64 = 1 << 30;

impl Weight {
    /// Stores values `[rows, cols]` on a device in the given format.
    ///
    /// # Errors
    /// The number of values is not `rows * cols`, or one row does not fit a binding of the device.
    pub fn new(device: &Device, rows: usize, cols: usize, values: &[f32], format: Format) -> Result<Self> {
        #[cfg(feature = "gpu")]
        let limit = match device {
            Device::Gpu(g) => g.limits().max_storage_buffer_binding_size.min(g.limits().max_buffer_size),
            _ => u64::MAX,
        };
        #[cfg(not(feature = "gpu"))]
        let limit = u64::MAX;
        Self::sharded(device, rows, cols, values, format, limit.min(MAX_SHARD_BYTES))
    }

    /// Like [`new`](Weight::new), with shards of at most `shard_bytes`.
    pub fn sharded(
        device: &Device,
        rows: usize,
        cols: usize,
        values: &[f32],
        format: Format,
        shard_bytes: u64,
    ) -> Result<Self> {
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(Error::shape("weight", format!("[{rows}, {cols}] from {} values", values.len())));
        }
        let words = format.row_words(cols);
        let per_shard = match words {
            0 => rows.max(1),
            _ => (shard_bytes / (4 * words as u64)) as usize,
        };
        if per_shard == 0 {
            return Err(Error::shape(
                "weight",
                format!("one row of {cols} {} values does not fit {shard_bytes} bytes", format.name()),
            ));
        }
        let mut shards = Vec::new();
        let mut first = 0;
        while first < rows || shards.is_empty() {
            let n = per_shard.min(rows - first);
            let part = &values[first * cols..(first + n) * cols];
            shards.push(Shard { first, rows: n, data: Self::pack(device, n, cols, part, format)? });
            first += n;
        }
        Ok(Weight(Arc::new(Inner { rows, cols, format, device: device.clone(), shards })))
    }

    fn pack(device: &Device, rows: usize, cols: usize, values: &[f32], format: Format) -> Result<Tensor> {
        if format == Format::F32 {
            return Tensor::from_f32(device, &[rows, cols], values);
        }
        let mut words = Vec::with_capacity(rows * format.row_words(cols));
        values.chunks(cols.max(1)).for_each(|row| format.encode(row, &mut words));
        if let Device::Reference = device {
            // The reference computes on what the other lanes decode.
            let mut decoded = vec![0.0; values.len()];
            let per_row = format.row_words(cols).max(1);
            for (out, row) in decoded.chunks_mut(cols.max(1)).zip(words.chunks(per_row)) {
                format.decode(row, out);
            }
            return Tensor::from_f32(device, &[rows, cols], &decoded);
        }
        Tensor::from_u32(device, &[rows, format.row_words(cols)], &words)
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
            DType::U32 => {
                let per_row = self.0.format.row_words(cols).max(1);
                let words = &shard.data.u32()[rows.start * per_row..rows.end * per_row];
                let mut out = vec![0.0; rows.len() * cols];
                out.par_chunks_mut(cols.max(1))
                    .zip(words.par_chunks(per_row))
                    .for_each(|(out, row)| self.0.format.decode(row, out));
                Cow::Owned(out)
            }
        }
    }
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Inner { rows, cols, format, device, shards } = &*self.0;
        write!(
            f,
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
mod tests {
    use super::*;

    #[test]
    fn formats_round_trip_in_shards() {
        let values: Vec<f32> = (0..35).map(|i| i as f32 * 0.25 - 3.0).collect();
        for format in [Format::F32, Format::F16, Format::Bf16] {
            let w = Weight::sharded(&Device::cpu(), 7, 5, &values, format, 40).unwrap();
            assert!(w.shards().len() >= 3);
            let all: Vec<f32> = w.shards().iter().flat_map(|s| w.decode(s, 0..s.rows).into_owned()).collect();
            assert_eq!(all, values, "{format:?}");
        }
    }

    #[test]
    fn a_row_that_does_not_fit_is_refused() {
        assert!(Weight::sharded(&Device::cpu(), 1, 64, &[0.0; 64], Format::F32, 128).is_err());
    }
}
