//! Rows of a tensor that are put aside while it changes.

use crate::{Result, Tensor};
use std::ops::Range;

/// Ranges in ascending order, those that touch joined; empty ones are left out.
pub(super) fn joined(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|r| !r.is_empty());
    ranges.sort_by_key(|r| r.start);
    let mut all: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

/// Values of some rows, and where they stand.
pub(crate) struct Rows(Vec<(usize, Tensor)>);

impl Rows {
    /// A copy of these rows of `tensor [rows, cols]`.
    pub fn of(tensor: &Tensor, ranges: &[Range<usize>]) -> Result<Self> {
        let copy = |range: &Range<usize>| {
            let numbers: Vec<u32> = range.clone().map(|row| row as u32).collect();
            let index = Tensor::from_u32(tensor.device(), &[numbers.len()], &numbers)?;
            Ok((range.start, tensor.detach().gather_rows(&index)?))
        };
        Ok(Rows(ranges.iter().map(copy).collect::<Result<_>>()?))
    }
    /// Zeros for these rows of `tensor [rows, cols]`.
    pub fn zeros(tensor: &Tensor, ranges: &[Range<usize>]) -> Result<Self> {
        let cols = tensor.shape().last();
        let zeros = |r: &Range<usize>| Ok((r.start, Tensor::zeros(tensor.device(), &[r.len(), cols])?));
        Ok(Rows(ranges.iter().map(zeros).collect::<Result<_>>()?))
    }
    /// Writes the rows at their places.
    pub fn put_into(&self, tensor: &mut Tensor) -> Result<()> {
        for (at, rows) in &self.0 {
            let [count, cols] = [tensor.shape().rows(), tensor.shape().last()];
            let mut whole = tensor.reshape(&[1, count, cols])?;
            whole.write_rows(*at, &rows.reshape(&[1, rows.shape().rows(), cols])?)?;
            *tensor = whole.reshape(&[count, cols])?;
        }
        Ok(())
    }
}
