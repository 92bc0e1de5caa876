//! Stored tensors, and scans of their values for non-finite numbers and zeros.

use crate::{Format, Result, weight};
use std::ops::Range;

/// The number of values that are decoded at a time.
const CHUNK: usize = 1 << 20;

/// The stored bytes of a tensor with its shape and format, row-major.
#[derive(Clone, Copy)]
pub struct RawTensor<'a> {
    /// Product of all axes but the innermost.
    pub rows: usize,
    /// Length of the innermost axis.
    pub cols: usize,
    /// Number of axes.
    pub axes: usize,
    pub format: Format,
    pub bytes: &'a [u8],
}

/// A summary of the values of a tensor, or of some of its rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scan {
    /// Row, column and value of the first non-finite value.
    pub nonfinite: Option<(usize, usize, f32)>,
    /// The largest absolute value among the finite values.
    pub largest: f32,
}

impl Scan {
    /// A sentence about non-finite values, or else about values that are all zero or subnormal.
    pub fn remark(&self) -> Option<String> {
        match (self.nonfinite, self.largest) {
            (Some((row, col, value)), _) => Some(format!("the value at row {row}, column {col} is {value}")),
            (None, 0.0) => Some("all values are 0".into()),
            (None, value) if value < f32::MIN_POSITIVE => {
                Some(format!("no value is larger than {value:e}, below the smallest normal f32"))
            }
            _ => None,
        }
    }
}

impl RawTensor<'_> {
    /// All values, row-major.
    ///
    /// # Errors
    /// The number of bytes does not fit the shape.
    pub fn values(&self) -> Result<Vec<f32>> {
        weight::values(self.rows, self.cols, self.bytes, self.format)
    }

    /// The values of some rows, evenly spread, the first and the last among them; of all where there are no more.
    ///
    /// # Errors
    /// The number of bytes does not fit the shape.
    pub fn sampled(&self, count: usize) -> Result<Vec<f32>> {
        let rows = self.spread(count).unwrap_or_else(|| std::iter::once(0..self.rows).collect());
        let values = rows.into_iter().map(|rows| self.decode_rows(rows));
        values.collect::<Result<Vec<_>>>().map(|rows| rows.concat())
    }

    /// So many rows, evenly spread; none where there are no more than that.
    fn spread(&self, count: usize) -> Option<Vec<Range<usize>>> {
        let row = |index: usize| index * (self.rows - 1) / (count - 1).max(1);
        (count < self.rows).then(|| (0..count).map(row).map(|row| row..row + 1).collect())
    }

    /// Decodes a range of rows.
    fn decode_rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let width = self.bytes.len() / self.rows.max(1);
        let bytes = self.bytes.get(rows.start * width..rows.end * width).unwrap_or_default();
        weight::values(rows.len(), self.cols, bytes, self.format)
    }

    /// Scans all rows, or `sample` evenly spaced rows that include the first and the last.
    ///
    /// # Errors
    /// The number of bytes does not fit the shape.
    pub fn scan(&self, sample: Option<usize>) -> Result<Scan> {
        let mut seen = Scan { nonfinite: None, largest: 0.0 };
        // Rows without columns take no bytes, so a file may claim any number of them.
        if self.rows == 0 || self.cols == 0 {
            return Ok(seen);
        }
        let per_chunk = (CHUNK / self.cols.max(1)).max(1);
        let all =
            || (0..self.rows).step_by(per_chunk).map(|row| row..(row + per_chunk).min(self.rows)).collect();
        let ranges: Vec<Range<usize>> = sample.and_then(|count| self.spread(count)).unwrap_or_else(all);
        for range in ranges {
            let values = self.decode_rows(range.clone())?;
            for (index, value) in values.into_iter().enumerate() {
                if value.is_finite() {
                    seen.largest = seen.largest.max(value.abs());
                } else {
                    let row = range.start + index / self.cols;
                    seen.nonfinite = Some((row, index % self.cols, value));
                    return Ok(seen);
                }
            }
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(values: &[f32], sample: Option<usize>) -> Scan {
        let bytes = bytemuck::cast_slice(values);
        RawTensor { rows: values.len() / 2, cols: 2, axes: 2, format: Format::F32, bytes }
            .scan(sample)
            .unwrap()
    }

    #[test]
    fn finds_what_is_not_finite_and_what_is_zero() {
        let mut values = vec![0.5f32; 40];
        assert_eq!(scan(&values, None), Scan { nonfinite: None, largest: 0.5 });
        assert_eq!(scan(&values, None).remark(), None);
        values[25] = f32::NEG_INFINITY;
        assert_eq!(scan(&values, None).nonfinite, Some((12, 1, f32::NEG_INFINITY)));
        assert_eq!(scan(&values, None).remark().unwrap(), "the value at row 12, column 1 is -inf");
        // Rows 0, 9 and 19 are looked at.
        let raw = RawTensor {
            rows: 20,
            cols: 2,
            axes: 2,
            format: Format::F32,
            bytes: bytemuck::cast_slice(&values),
        };
        assert_eq!(raw.sampled(3).unwrap(), [0, 1, 18, 19, 38, 39].map(|i| values[i]));
        assert_eq!(raw.sampled(20).unwrap(), values);
        assert_eq!(scan(&values, Some(3)).nonfinite, None);
        values[39] = f32::NAN;
        assert_eq!(scan(&values, Some(3)).nonfinite.map(|(row, col, _)| (row, col)), Some((19, 1)));
        assert_eq!(scan(&[0.0; 4], None).remark().unwrap(), "all values are 0");
        assert!(scan(&[1e-40; 4], None).remark().unwrap().contains("smallest normal"));
        let claimed = RawTensor { rows: 1 << 56, cols: 0, axes: 2, format: Format::F32, bytes: &[] };
        assert_eq!(claimed.scan(None).unwrap().largest, 0.0);
        assert_eq!(scan(&[], None).remark().unwrap(), "all values are 0");
    }
}
