//! Dense products on the CPU: the `gemm` crate's kernels, with the work split by shape.
//!
//! Each task computes one tile of the result on one thread, and the tiles depend on the shape alone, so the bits
//! do not depend on the number of threads.

use gemm::Parallelism;
use rayon::prelude::*;
use std::ops::Range;

/// A matrix in memory, by strides in elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Row-major `[rows, cols]`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert!(data.len() >= rows * cols, "{} values for {rows} x {cols}", data.len());
        Mat { data, rows, cols, row_stride: cols, col_stride: 1 }
    }
    /// Columns `first .. first + n`.
    pub fn columns(self, first: usize, n: usize) -> Self {
        assert!(first + n <= self.cols);
        Mat { data: &self.data[(first * self.col_stride).min(self.data.len())..], cols: n, ..self }
    }
    /// Rows that start `row_stride` elements apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let used = if rows * cols == 0 { 0 } else { (rows - 1) * row_stride + cols };
        assert!(data.len() >= used, "{} values for {rows} x {cols} every {row_stride}", data.len());
        Mat { data, rows, cols, row_stride, col_stride: 1 }
    }
    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Mat {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// Largest tile of one task.
const TILE_ROWS: usize = 256;
const TILE_COLS: usize = 512;

/// Splits `n` into equal blocks of at most `most`, rounded up to a multiple of 16.
fn block(n: usize, most: usize) -> usize {
    n.div_ceil(n.div_ceil(most).max(1)).next_multiple_of(16)
}

#[derive(Clone, Copy)]
struct Dst(*mut f32);
// Tasks write disjoint tiles.
unsafe impl Send for Dst {}
unsafe impl Sync for Dst {}

/// One tile of the result, at `rows` and `cols`, on this thread.
///
/// # Safety
/// `c` has rows `n` elements apart and the tile lies in it; `a` and `b` have the rows and columns of the tile.
unsafe fn product(
    c: *mut f32,
    n: usize,
    a: Mat<'_>,
    b: Mat<'_>,
    (rows, cols): (Range<usize>, Range<usize>),
    scale: f32,
    add: bool,
) {
    unsafe {
        gemm::gemm(
            rows.len(),
            cols.len(),
            a.cols,
            c.add(rows.start * n + cols.start),
            1,
            n as isize,
            add,
            a.data.as_ptr().add(rows.start * a.row_stride),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr().add(cols.start * b.col_stride),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0f32,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// [`gemm`] as one tile on this thread: for blocks inside of tasks.
pub(crate) fn gemm_here(c: &mut [f32], a: Mat<'_>, b: Mat<'_>, scale: f32, add: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert!(b.rows == k && c.len() >= m * n, "{m} x {k} by {} x {n} into {}", b.rows, c.len());
    if k == 0 || m * n == 0 {
        if !add {
            c[..m * n].fill(0.0);
        }
        return;
    }
    // In bounds by the asserts, here and where the matrices were made.
    unsafe { product(c.as_mut_ptr(), n, a, b, (0..m, 0..n), scale, add) }
}

/// `c = [c +] scale * a b` with `c` row-major `[a.rows, b.cols]`; `add` keeps what is in `c`.
pub(crate) fn gemm(c: &mut [f32], a: Mat<'_>, b: Mat<'_>, scale: f32, add: bool) {
    gemm_strided(c, b.cols, a, b, scale, add);
}

/// [`gemm`] into rows that start `stride` elements apart: columns of a wider matrix, from the first of `c` on.
pub(crate) fn gemm_strided(c: &mut [f32], stride: usize, a: Mat<'_>, b: Mat<'_>, scale: f32, add: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    let fits = n <= stride && c.len() >= (m - 1) * stride + n;
    assert!(b.rows == k && fits, "{m} x {k} by {} x {n} into {} every {stride}", b.rows, c.len());
    if k == 0 {
        if !add {
            c.chunks_mut(stride).take(m).for_each(|c| c[..n].fill(0.0));
        }
        return;
    }
    let (mut mb, mut nb) = (block(m, TILE_ROWS), block(n, TILE_COLS));
    // At least four tasks when there is work for them.
    while m.div_ceil(mb) * n.div_ceil(nb) < 4 && mb * nb * k > 1 << 18 && mb.max(nb) > 32 {
        if nb >= mb { nb = block(nb, nb.div_ceil(2)) } else { mb = block(mb, mb.div_ceil(2)) }
    }
    let dst = Dst(c.as_mut_ptr());
    let cols = n.div_ceil(nb);
    let tile = |t: usize| {
        let (i, j) = (t / cols * mb, t % cols * nb);
        // In bounds: the tile ends at m and n, and the asserts above tie the slices to m, n, k.
        unsafe { product({ dst }.0, stride, a, b, (i..m.min(i + mb), j..n.min(j + nb)), scale, add) }
    };
    match m.div_ceil(mb) * cols {
        1 => tile(0),
        tiles => (0..tiles).into_par_iter().for_each(tile),
    }
}

/// `c = [c +] scale * a b` in f64, for the reference lane.
pub(crate) fn gemm_f64(
    c: &mut [f64],
    a: &[f64],
    b: &[f64],
    (m, n, k): (usize, usize, usize),
    ta: bool,
    tb: bool,
) {
    for i in 0..m {
        for j in 0..n {
            let at = |q: usize| if ta { a[q * m + i] } else { a[i * k + q] };
            let bt = |q: usize| if tb { b[j * k + q] } else { b[q * n + j] };
            c[i * n + j] = (0..k).map(|q| at(q) * bt(q)).sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn tiles_cover_every_shape() {
        for (m, n, k) in [(1, 1, 1), (3, 700, 5), (600, 33, 40), (257, 513, 129), (2, 2, 0)] {
            let a = Stream::new(1).normal_vec(m * k, 1.0);
            let b = Stream::new(2).normal_vec(k * n, 1.0);
            let wide = |v: &[f32]| v.iter().map(|&v| v as f64).collect::<Vec<_>>();
            let mut want = vec![0.0; m * n];
            gemm_f64(&mut want, &wide(&a), &wide(&b), (m, n, k), false, false);
            let mut c = vec![f32::NAN; m * n];
            gemm(&mut c, Mat::new(&a, m, k), Mat::new(&b, k, n), 1.0, false);
            gemm(&mut c, Mat::new(&a, m, k), Mat::new(&b, k, n), 0.5, true);
            for (c, w) in c.iter().zip(want) {
                assert!((*c as f64 - 1.5 * w).abs() < 1e-3, "{m} {n} {k}: {c} {w}");
            }
        }
    }
}
