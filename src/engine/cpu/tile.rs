//! Tiles of row-major matrices: what one task writes, while others write the rest.

use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// A matrix whose tiles are handed out to tasks.
#[derive(Clone, Copy)]
pub(super) struct Dst {
    pub at: *mut f32,
    pub stride: usize,
}
// SAFETY: a pointer; what is done with it is promised where tiles are made, which are disjoint.
unsafe impl Send for Dst {}
// SAFETY: as above.
unsafe impl Sync for Dst {}

impl Dst {
    /// One tile of it.
    ///
    /// # Safety
    /// The tile lies in memory that lives as long as `'a`, and nothing else uses it meanwhile.
    pub unsafe fn tile<'a>(self, rows: Range<usize>, cols: Range<usize>) -> Tile<'a> {
        Tile { dst: self, rows, cols, of: PhantomData }
    }
}

/// Rows and columns of a matrix.
pub(crate) struct Tile<'a> {
    dst: Dst,
    rows: Range<usize>,
    cols: Range<usize>,
    of: PhantomData<&'a mut [f32]>,
}

impl<'a> Tile<'a> {
    /// Whole rows of `n` values, which are the rows `rows` of a matrix.
    pub fn of_rows(c: &'a mut [f32], rows: Range<usize>, n: usize) -> Self {
        assert!(c.len() >= rows.len() * n);
        let at = c.as_mut_ptr().wrapping_sub(rows.start * n);
        Tile { dst: Dst { at, stride: n }, rows, cols: 0..n, of: PhantomData }
    }

    /// The matrix.
    pub(super) fn dst(&mut self) -> Dst {
        self.dst
    }

    /// Its rows of the matrix.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Its columns of the matrix.
    pub fn cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// The tile's part of row `i` of the matrix.
    pub fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(self.rows.contains(&i));
        // SAFETY: the row lies in the matrix by this and by how the tile was made, and no other task has it.
        unsafe {
            let at = self.dst.at.wrapping_add(i * self.dst.stride + self.cols.start);
            std::slice::from_raw_parts_mut(at, self.cols.len())
        }
    }

    /// The tile's parts of four rows of the matrix, in rising order.
    pub fn four_rows(&mut self, at: [usize; 4]) -> [&mut [f32]; 4] {
        assert!(at.is_sorted_by(|a, b| a < b));
        at.map(|i| {
            let row = self.row(i);
            // SAFETY: the rows are different ones, and the tile is borrowed for as long as they are.
            unsafe { std::slice::from_raw_parts_mut(row.as_mut_ptr(), row.len()) }
        })
    }
}

/// Calls `f` on blocks of columns of `y`, which has rows of `width` values: for sums over many rows.
pub(crate) fn columns_in_parallel(y: &mut [f32], width: usize, f: impl Fn(&mut Tile<'_>) + Sync) {
    blocks_in_parallel(y, width, (width / 8).clamp(64, 256).next_multiple_of(16), f);
}

/// [`columns_in_parallel`] with blocks of so many columns.
pub(crate) fn blocks_in_parallel(
    y: &mut [f32],
    width: usize,
    block: usize,
    f: impl Fn(&mut Tile<'_>) + Sync,
) {
    if y.is_empty() || width == 0 {
        return;
    }
    let dst = Dst { at: y.as_mut_ptr(), stride: width };
    let rows = y.len() / width;
    let task = |b: usize| {
        let cols = b * block..width.min((b + 1) * block);
        // SAFETY: inside of y, and each block of columns is one task's.
        f(&mut unsafe { { dst }.tile(0..rows, cols) });
    };
    match width.div_ceil(block) {
        1 => task(0),
        blocks => (0..blocks).into_par_iter().with_max_len(1).for_each(task),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_columns_cover_a_matrix_once() {
        for (rows, width) in [(0, 5), (1, 1), (3, 64), (2, 130), (5, 3000)] {
            let mut y = vec![0f32; rows * width];
            columns_in_parallel(&mut y, width, |tile| {
                let first = tile.cols().start;
                for i in tile.rows() {
                    let row = tile.row(i).iter_mut().enumerate();
                    row.for_each(|(j, y)| *y += (i * width + first + j) as f32);
                }
            });
            assert!(y.iter().enumerate().all(|(i, y)| *y == i as f32), "{rows} x {width}");
        }
    }
}
