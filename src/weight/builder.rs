//! How a weight is made from values or from the bytes of a file.

use super::{Format, Weight, not_in_blocks, refuse, shard_limit};
use crate::{Device, Result};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What the rows of a weight are read from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Values(&'a [f32]),
    Bytes(&'a [u8], Format),
}

/// A weight before it is stored: [`Weight::from_bytes`] and [`Weight::from_values`] begin one, and
/// [`build`](WeightBuilder::build) ends it.
#[must_use]
pub struct WeightBuilder<'a> {
    device: &'a Device,
    dims: [usize; 2],
    source: Source<'a>,
    order: Option<Box<dyn Fn(usize) -> usize + 'a>>,
    format: Format,
    shard_bytes: u64,
}

impl<'a> WeightBuilder<'a> {
    pub(super) fn new(device: &'a Device, dims: [usize; 2], source: Source<'a>, format: Format) -> Self {
        WeightBuilder { device, dims, source, order: None, format, shard_bytes: shard_limit(device) }
    }

    /// Takes row `order(i)` of the source as row `i`.
    pub fn rows(self, order: impl Fn(usize) -> usize + 'a) -> Self {
        WeightBuilder { order: Some(Box::new(order)), ..self }
    }

    /// Stores the weight in this format. Values are quantised where it is another than that of the bytes: as ggml does for
    /// blocks of 32, and with the least squared error that a search finds for those of 256.
    pub fn store_as(self, format: Format) -> Self {
        WeightBuilder { format, ..self }
    }

    /// Keeps at most so many bytes in a shard; a device's largest binding is the default.
    pub fn shard_bytes(self, bytes: u64) -> Self {
        WeightBuilder { shard_bytes: bytes, ..self }
    }

    /// Stores the weight.
    ///
    /// # Errors
    /// `cols` is not a multiple of the block length, the source has not the size of `[rows, cols]`, the order names a
    /// row that is not there, one row does not fit a binding of the device, or a value is too large for the format.
    pub fn build(self) -> Result<Weight> {
        let WeightBuilder { device, dims: [rows, cols], source, format, shard_bytes, .. } = self;
        let row_bytes = match source {
            Source::Bytes(bytes, format) => Weight::raw_row_bytes([rows, cols], bytes, format)?,
            Source::Values(values) if rows.checked_mul(cols) == Some(values.len()) => 4 * cols,
            Source::Values(values) => return refuse(format!("the values of [{rows}, {cols}]"), values.len()),
        };
        let Some(stored_bytes) = format.row_bytes(cols) else { return not_in_blocks(format, cols) };
        // The number of rows is bounded by the source before a list of them is made.
        let order: Option<Vec<usize>> =
            self.order.filter(|_| row_bytes > 0).map(|order| (0..rows).map(order).collect());
        if let Some(row) = order.iter().flatten().find(|row| **row >= rows) {
            return refuse(format!("an order of {rows} rows"), format!("row {row}"));
        }
        let too_large = AtomicUsize::new(usize::MAX);
        let weight = Weight::build(device, rows, cols, format, shard_bytes, |row, words| {
            let row = order.as_ref().map_or(row, |order| order[row]);
            let store = |values: &[f32], words: &mut [u32]| {
                let mut bytes = vec![0; stored_bytes];
                if !format.encode(values, &mut bytes) {
                    too_large.fetch_min(row, Relaxed);
                }
                format.pack(&bytes, words);
            };
            match source {
                Source::Values(values) => store(&values[row * cols..][..cols], words),
                Source::Bytes(bytes, from) => {
                    let bytes = &bytes[row * row_bytes..][..row_bytes];
                    if from == format {
                        return from.pack(bytes, words);
                    }
                    let mut packed = vec![0; from.row_words(cols)];
                    from.pack(bytes, &mut packed);
                    if format == Format::F32 {
                        return from.decode(&packed, bytemuck::cast_slice_mut(words));
                    }
                    let mut values = vec![0.0; cols];
                    from.decode(&packed, &mut values);
                    store(&values, words);
                }
            }
        })?;
        match too_large.into_inner() {
            usize::MAX => Ok(weight),
            row => {
                refuse(format!("values that {} can hold", format.name()), format!("larger ones in row {row}"))
            }
        }
    }
}
