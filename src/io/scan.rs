//! Tensors as they stand in files, and a look at their values: what is not finite, what is zero.

use crate::{Format, Result, weight};
use std::ops::Range;

/// Values that are decoded at a time.
const CHUNK: usize = 1 << 20;

/// A tensor as it stands in a file, row-major.
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

/// What the values of a tensor, or of some of its rows, look like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scan {
    /// Row, column and value of the first one that is not finite.
    pub nonfinite: Option<(usize, usize, f32)>,
    /// The largest absolute value of the finite ones.
    pub largest: f32,
}

impl Scan {
    /// What is wrong with the values, if anything; not finite ones first.
    pub fn remark(&self) -> Option<String> {
        match (self.nonfinite, self.largest) {
            (Some((row, col, v)), _) => Some(format!("the value at row {row}, column {col} is {v}")),
            (None, 0.0) => Some("all values are 0".into()),
            (None, v) if v < f32::MIN_POSITIVE => {
                Some(format!("no value is larger than {v:e}, below the smallest normal f32"))
            }
            _ => None,
        }
    }
}

impl RawTensor<'_> {
    /// All values, row-major.
    ///
    /// # Errors
    /// The number of bytes is not that of the shape.
    pub fn values(&self) -> Result<Vec<f32>> {
        weight::values(self.rows, self.cols, self.bytes, self.format)
    }

    /// The values of some rows.
    fn rows_of(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let width = self.bytes.len() / self.rows.max(1);
        let bytes = self.bytes.get(rows.start * width..rows.end * width).unwrap_or_default();
        weight::values(rows.len(), self.cols, bytes, self.format)
    }

    /// Looks at `sample` rows, evenly spread with the first and the last among them, or at all of them.
    ///
    /// # Errors
    /// The number of bytes is not that of the shape.
    pub fn scan(&self, sample: Option<usize>) -> Result<Scan> {
        let mut seen = Scan { nonfinite: None, largest: 0.0 };
        // A file may claim any number of rows without columns.
        if self.rows == 0 || self.cols == 0 {
            return Ok(seen);
        }
        let per_chunk = (CHUNK / self.cols.max(1)).max(1);
        let ranges: Vec<Range<usize>> = match sample.filter(|&n| n < self.rows) {
            Some(n) => (0..n).map(|i| i * (self.rows - 1) / (n - 1).max(1)).map(|r| r..r + 1).collect(),
            None => (0..self.rows).step_by(per_chunk).map(|r| r..(r + per_chunk).min(self.rows)).collect(),
        };
        for range in ranges {
            let values = self.rows_of(range.clone())?;
            for (i, v) in values.into_iter().enumerate() {
                if v.is_finite() {
                    seen.largest = seen.largest.max(v.abs())
                } else {
                    let row = range.start + i / self.cols;
                    let col = i % self.cols;
                    seen.nonfinite = Some((row, col, v));
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
        let mut v = vec![0.5f32; 40];
        assert_eq!(scan(&v, None), Scan { nonfinite: None, largest: 0.5 });
        assert_eq!(scan(&v, None).remark(), None);
        v[25] = f32::NEG_INFINITY;
        assert_eq!(scan(&v, None).nonfinite, Some((12, 1, f32::NEG_INFINITY)));
        assert_eq!(scan(&v, None).remark().unwrap(), "the value at row 12, column 1 is -inf");
        // Rows 0, 9 and 19 are looked at.
        assert_eq!(scan(&v, Some(3)).nonfinite, None);
        v[39] = f32::NAN;
        assert_eq!(scan(&v, Some(3)).nonfinite.map(|n| (n.0, n.1)), Some((19, 1)));
        assert_eq!(scan(&[0.0; 4], None).remark().unwrap(), "all values are 0");
        assert!(scan(&[1e-40; 4], None).remark().unwrap().contains("smallest normal"));
        let claimed = RawTensor { rows: 1 << 56, cols: 0, axes: 2, format: Format::F32, bytes: &[] };
        assert_eq!(claimed.scan(None).unwrap().largest, 0.0);
        assert_eq!(scan(&[], None).remark().unwrap(), "all values are 0");
    }
}
