//! Shapes with checked sizes.

use crate::{Error, Result};
use std::fmt;

/// Largest number of elements of a tensor: kernels index in `u32` elements.
pub const MAX_ELEMENTS: usize = u32::MAX as usize;

/// Row-major shape, outermost axis first. Every tensor is contiguous.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// Checks that the number of elements fits the 32-bit indices of kernels.
    pub fn new(dims: &[usize]) -> Result<Self> {
        let n = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        match n {
            Some(n) if n <= MAX_ELEMENTS => Ok(Shape(dims.to_vec())),
            _ => Err(Error::shape("shape", format!("at most {MAX_ELEMENTS} elements"), format!("{dims:?}"))),
        }
    }
    /// Axis lengths.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }
    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.0.len()
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.iter().product()
    }
    /// True when there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Length of the innermost axis (1 for a scalar).
    pub fn last(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }
    /// Number of rows: the product of all axes but the innermost.
    pub fn rows(&self) -> usize {
        self.0[..self.0.len().saturating_sub(1)].iter().product()
    }
    /// The same shape with another innermost axis.
    pub fn with_last(&self, d: usize) -> Result<Self> {
        let mut v = self.0.clone();
        match v.last_mut() {
            Some(l) => *l = d,
            None => v.push(d),
        }
        Shape::new(&v)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.0)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_is_refused() {
        assert!(Shape::new(&[usize::MAX, 2]).is_err());
        assert!(Shape::new(&[1 << 16, 1 << 16]).is_err());
        assert!(Shape::new(&[0, usize::MAX]).is_ok());
    }

    #[test]
    fn rows_and_last() {
        let s = Shape::new(&[2, 3, 4]).unwrap();
        assert_eq!((s.rows(), s.last(), s.len()), (6, 4, 24));
        let s = Shape::new(&[]).unwrap();
        assert_eq!((s.rows(), s.last(), s.len()), (1, 1, 1));
    }
}
