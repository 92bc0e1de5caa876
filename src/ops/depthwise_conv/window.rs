//! Which pixels a window covers: TensorFlow's padding "same".

use crate::{Error, Result};
use std::ops::Range;

/// Windows of `k x k` pixels at steps of `stride` over a picture. There are `ceil(n / stride)` along a side of n, and of
/// the zeros that they need around the picture the smaller half lies before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Windows {
    pub k: usize,
    pub stride: usize,
}

impl Windows {
    /// Refuses windows without pixels, and steps of none.
    pub fn check(self, name: &'static str) -> Result<()> {
        if self.k == 0 || self.stride == 0 || self.k > 1 << 10 || self.stride > 1 << 10 {
            let found = format!("k {} and stride {}", self.k, self.stride);
            return Err(Error::shape(name, "k and stride from 1 to 1024", found));
        }
        Ok(())
    }

    /// The number of windows along a side.
    pub fn count(self, side: usize) -> usize {
        side.div_ceil(self.stride)
    }

    /// Zeros before the first pixel of a side.
    pub fn before(self, side: usize) -> usize {
        let reach = self.count(side).saturating_sub(1) * self.stride + self.k;
        reach.saturating_sub(side) / 2
    }

    /// The rows or columns of a window that lie in the picture, and the pixel under the first of them.
    pub fn covered(self, window: usize, side: usize) -> (Range<usize>, usize) {
        let start = window * self.stride;
        let before = self.before(side);
        let first = before.saturating_sub(start).min(self.k);
        let end = (side + before).saturating_sub(start).min(self.k).max(first);
        (first..end, (start + first).saturating_sub(before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_as_in_tensorflow() {
        let windows = |k, stride| Windows { k, stride };
        // An even side and a step of two: one zero, behind. An odd one: one on each side.
        assert_eq!((windows(3, 2).count(128), windows(3, 2).before(128)), (64, 0));
        assert_eq!((windows(3, 2).count(7), windows(3, 2).before(7)), (4, 1));
        assert_eq!((windows(5, 2).before(8), windows(5, 1).before(8), windows(1, 2).before(8)), (1, 2, 0));
        assert_eq!(windows(5, 1).covered(0, 8), (2..5, 0));
        assert_eq!(windows(5, 1).covered(7, 8), (0..3, 5));
        assert_eq!(windows(5, 2).covered(3, 8), (0..3, 5));
        // A window that is larger than the picture.
        assert_eq!(windows(7, 1).covered(0, 1), (3..4, 0));
    }
}
