//! Dense products on the CPU, with the work split by shape: our own kernel on processors with AVX2, that of the
//! `gemm-f32` crate on all others (docs/decisions/0007-dense-products-on-avx2.md).
//!
//! Each task computes one tile of the result on one thread, and the tiles depend on the shape alone, so the bits
//! do not depend on the number of threads.

#[cfg(target_arch = "x86_64")]
use super::gemm_avx2;
use super::tile::{Dst, Tile};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Level, level};
use crate::simd::{all_dots, vectorised};
use gemm_common::Parallelism;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// A matrix in memory, by strides in elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mat<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
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

/// Largest tile of one task: tall, so that what is made of its part of `b` serves many rows.
const TILE_ROWS: usize = 1024;
/// Columns of a tile: multiples of what the kernels take at once, the best fit first.
const TILE_COLS: [usize; 3] = [192, 256, 128];
/// Summed values from which a transposed `b` is turned around first: its rows then lie too far apart for the cache.
const LONG: usize = 1024;

/// Rows and columns of the tiles of a product: a function of its shape alone.
fn tile_of(m: usize, n: usize, k: usize) -> (usize, usize) {
    let waste = |cols: &usize| n.next_multiple_of(*cols) - n;
    let mut cols =
        TILE_COLS.into_iter().min_by_key(waste).unwrap_or(TILE_COLS[0]).min(n.next_multiple_of(16));
    let mut rows = m.div_ceil(m.div_ceil(TILE_ROWS).max(1)).next_multiple_of(16);
    // An even number of tasks, and four when there is work for them.
    let tasks = |rows: usize, cols: usize| m.div_ceil(rows) * n.div_ceil(cols);
    let half = |n: usize| n.div_ceil(2).next_multiple_of(16);
    if tasks(rows, cols) % 2 == 1 && rows * cols * k > 1 << 20 && rows > 32 {
        rows = half(rows);
    }
    while tasks(rows, cols) < 4 && rows * cols * k > 1 << 20 && rows.max(cols) > 32 {
        if cols >= rows { cols = half(cols) } else { rows = half(rows) }
    }
    (rows, cols)
}

/// Values of a task that are not kept.
pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    }
    let mut values = SCRATCH.take();
    if values.len() < len {
        values.resize(len, 0.0);
    }
    let out = f(&mut values[..len]);
    SCRATCH.set(values);
    out
}

vectorised! {
    /// `to [cols, rows of to]`, columns `first ..` of it, from the rows of `from`.
    pub(crate) fn turn(from: &[f32], cols: usize, rows: usize, to: &mut [f32], stride: usize, first: usize) {
        let mut c0 = 0;
        while c0 < cols {
            let w = SIDE.min(cols - c0);
            let mut r0 = 0;
            while r0 < rows {
                let h = SIDE.min(rows - r0);
                if (w, h) == (SIDE, SIDE) {
                    let mut t = [[0f32; SIDE]; SIDE];
                    for i in 0..SIDE {
                        let row = &from[(r0 + i) * cols + c0..][..SIDE];
                        for j in 0..SIDE {
                            t[j][i] = row[j];
                        }
                    }
                    for (j, t) in t.iter().enumerate() {
                        to[(c0 + j) * stride + first + r0..][..SIDE].copy_from_slice(t);
                    }
                } else {
                    for i in 0..h {
                        for j in 0..w {
                            to[(c0 + j) * stride + first + r0 + i] = from[(r0 + i) * cols + c0 + j];
                        }
                    }
                }
                r0 += SIDE;
            }
            c0 += SIDE;
        }
    }
}
/// Rows of `a` up to which a transposed `b` is read once, row by row, and never packed.
pub(crate) const FEW: usize = 8;

vectorised! {
    /// A tile of few rows of `a b`, where columns of `b` lie in one piece.
    fn few_rows(simd: _, a: Mat<'_>, b: Mat<'_>, tile: &mut Tile<'_>, scale: f32, add: bool) {
        let k = a.cols;
        let rows: Vec<&[f32]> = tile.rows().map(|i| &a.data[i * a.row_stride..][..k]).collect();
        let cols: Vec<&[f32]> = tile.cols().map(|j| &b.data[j * b.col_stride..][..k]).collect();
        let first = tile.rows().start;
        all_dots(simd, &rows, &cols, |i, j, sum| {
            let y = &mut tile.row(first + i)[j];
            *y = if add { *y + scale * sum } else { scale * sum };
        });
    }
}

/// Side of the squares in which matrices are turned around.
const SIDE: usize = 16;

/// One tile of the result, at `rows` and `cols`, on this thread; `done` is called with rows of it that are complete.
///
/// # Safety
/// The tile lies in `c`, which nothing else uses; `b` has the columns of the tile, and there is something to sum.
unsafe fn product(
    c: Dst,
    a: Mat<'_>,
    b: Mat<'_>,
    (rows, cols): (Range<usize>, Range<usize>),
    scale: f32,
    add: bool,
    done: &mut dyn FnMut(Range<usize>),
) {
    #[cfg(target_arch = "x86_64")]
    if let Level::Avx2(simd) = level() {
        // SAFETY: as above, and the token proves the instructions.
        return unsafe { gemm_avx2::product(simd, c, a, b, (rows, cols), scale, add, done) };
    }
    // The crate's kernels write columns of contiguous values: they get the product transposed, c^T = b^T a^T.
    // SAFETY: the pointers and strides are those of matrices that hold the tile, by what the caller promises.
    unsafe {
        gemm_f32::gemm::f32::get_gemm_fn()(
            cols.len(),
            rows.len(),
            a.cols,
            c.at.add(rows.start * c.stride + cols.start),
            c.stride as isize,
            1,
            add,
            b.data.as_ptr(),
            b.row_stride as isize,
            b.col_stride as isize,
            a.data.as_ptr().add(rows.start * a.row_stride),
            a.row_stride as isize,
            a.col_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
    done(rows);
}

/// [`gemm`] as one tile on this thread: for blocks inside of tasks.
pub(crate) fn gemm_here(c: &mut [f32], a: Mat<'_>, b: Mat<'_>, scale: f32, add: bool) {
    gemm_every(c, b.cols, a, b, scale, add);
}

/// [`gemm_here`] into rows of `c` that start `stride` elements apart.
pub(crate) fn gemm_every(c: &mut [f32], stride: usize, a: Mat<'_>, b: Mat<'_>, scale: f32, add: bool) {
    let m = a.rows;
    let n = b.cols;
    let k = a.cols;
    if m * n == 0 {
        return;
    }
    let used = (m - 1) * stride + n;
    assert!(b.rows == k && stride >= n && c.len() >= used, "{m} x {k} by {} x {n} into {}", b.rows, c.len());
    if k == 0 {
        if !add {
            c.chunks_mut(stride).take(m).for_each(|c| c[..n].fill(0.0));
        }
        return;
    }
    let dst = Dst { at: c.as_mut_ptr(), stride };
    if few(a, b) {
        // SAFETY: in bounds by the assert, and this task alone has `c`.
        return few_rows(a, b, &mut unsafe { dst.tile(0..m, 0..n) }, scale, add);
    }
    // SAFETY: in bounds by the asserts, here and where the matrices were made.
    let multiply = |b: Mat<'_>| unsafe { product(dst, a, b, (0..m, 0..n), scale, add, &mut |_| ()) };
    if far(a, b) {
        with_scratch(k * n, |panel| {
            turn(b.data, k, n, panel, n, 0);
            multiply(Mat::new(panel, k, n));
        })
    } else {
        multiply(b)
    }
}

/// Adds `scale * a b` to a tile on this thread: `a` has all rows of the tile's matrix, `b` the columns of the tile alone.
pub(crate) fn gemm_to_tile(tile: &mut Tile<'_>, a: Mat<'_>, b: Mat<'_>, scale: f32) {
    let rows = tile.rows();
    let cols = tile.cols();
    assert!(a.cols == b.rows && rows.end <= a.rows && cols.len() == b.cols);
    if a.cols > 0 && !rows.is_empty() && !cols.is_empty() {
        // SAFETY: the tile is borrowed, and the matrices hold what belongs to it by the assert.
        unsafe { product(tile.dst(), a, b, (rows, cols), scale, true, &mut |_| ()) }
    }
}

/// Few rows, and columns of `b` that lie in one piece: each is read once.
fn few(a: Mat<'_>, b: Mat<'_>) -> bool {
    a.rows <= FEW && b.row_stride == 1 && a.col_stride == 1
}

/// Whether this crate's own kernel multiplies: on processors with AVX2 and without AVX-512.
fn uses_own_kernel() -> bool {
    #[cfg(target_arch = "x86_64")]
    return matches!(level(), Level::Avx2(_));
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// A transposed `b` whose rows are far apart.
fn far(a: Mat<'_>, b: Mat<'_>) -> bool {
    !uses_own_kernel() && b.row_stride == 1 && b.col_stride == b.rows && b.rows >= LONG && a.rows >= SIDE
}

/// `c = [c +] scale * a b` with `c` row-major `[a.rows, b.cols]`; `add` keeps what is in `c`.
pub(crate) fn gemm(c: &mut [f32], a: Mat<'_>, b: Mat<'_>, scale: f32, add: bool) {
    gemm_then(c, a, b, scale, add, &|_| ());
}

/// [`gemm`], and `then` on every part of it once, when that is done and still in the cache.
pub(crate) fn gemm_then(
    c: &mut [f32],
    a: Mat<'_>,
    b: Mat<'_>,
    scale: f32,
    add: bool,
    then: &(dyn Fn(&mut Tile<'_>) + Sync),
) {
    // Transposed, with rows that are far apart: each task turns its columns around.
    let columns = |cols: &Range<usize>, panel: &mut [f32]| {
        turn(&b.data[cols.start * b.rows..], b.rows, cols.len(), panel, cols.len(), 0);
    };
    if far(a, b) {
        tiles(c, a, b.cols, Columns::Made(&columns), scale, add, then)
    } else {
        tiles(c, a, b.cols, Columns::Of(b), scale, add, then)
    }
}

/// `c = [c +] scale * a b` where the columns of `b` are made when they are needed: `columns(range, [a.cols, range])`.
pub(crate) fn gemm_made(
    c: &mut [f32],
    a: Mat<'_>,
    n: usize,
    columns: &(dyn Fn(&Range<usize>, &mut [f32]) + Sync),
    scale: f32,
    add: bool,
    then: &(dyn Fn(&mut Tile<'_>) + Sync),
) {
    tiles(c, a, n, Columns::Made(columns), scale, add, then);
}

/// Where the columns of `b` come from.
#[derive(Clone, Copy)]
enum Columns<'a> {
    Of(Mat<'a>),
    Made(&'a (dyn Fn(&Range<usize>, &mut [f32]) + Sync)),
}

fn tiles(
    c: &mut [f32],
    a: Mat<'_>,
    n: usize,
    b: Columns<'_>,
    scale: f32,
    add: bool,
    then: &(dyn Fn(&mut Tile<'_>) + Sync),
) {
    let m = a.rows;
    let k = a.cols;
    if m == 0 || n == 0 {
        return;
    }
    let b_rows = if let Columns::Of(b) = b { b.rows } else { k };
    assert!(b_rows == k && c.len() >= m * n, "{m} x {k} by {b_rows} x {n} into {}", c.len());
    if k == 0 && !add {
        c[..m * n].fill(0.0);
    }
    let (mb, nb) = tile_of(m, n, k);
    let dst = Dst { at: c.as_mut_ptr(), stride: n };
    // The tiles of one range of rows follow each other: what they read of `a` is in the cache.
    let across = n.div_ceil(nb);
    let task = |t: usize| {
        let i = t / across * mb;
        let j = t % across * nb;
        let rows = i..m.min(i + mb);
        let cols = j..n.min(j + nb);
        // SAFETY: the tile lies in `c`, and no other task has it.
        let mut done = |rows: Range<usize>| then(&mut unsafe { dst.tile(rows, cols.clone()) });
        let mut multiply = |b: Mat<'_>| {
            // SAFETY: the tile ends at m and n, and the assert above ties the slices to m, n, k.
            unsafe { product(dst, a, b, (rows.clone(), cols.clone()), scale, add, &mut done) };
        };
        match b {
            _ if k == 0 => done(rows),
            Columns::Of(b) if few(a, b) => {
                // SAFETY: as above.
                let mut tile = unsafe { dst.tile(rows.clone(), cols.clone()) };
                few_rows(a, b, &mut tile, scale, add);
                done(rows);
            }
            Columns::Of(b) => multiply(b.columns(j, cols.len())),
            Columns::Made(make) => with_scratch(k * cols.len(), |panel| {
                make(&cols, panel);
                multiply(Mat::new(panel, k, cols.len()));
            }),
        }
    };
    match m.div_ceil(mb) * across {
        1 => task(0),
        tasks => (0..tasks).into_par_iter().with_max_len(1).for_each(task),
    }
}

/// `c = [c +] scale * a b` in f64, for the reference back end.
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
        for (m, n, k) in
            [(1, 1, 1), (3, 700, 5), (600, 33, 40), (257, 513, 129), (40, 50, 1100), (2, 2, 0), (5, 300, 70)]
        {
            let a = Stream::new(1).normal_vec(m * k, 1.0);
            let b = Stream::new(2).normal_vec(k * n, 1.0);
            let wide = |v: &[f32]| v.iter().map(|&v| v as f64).collect::<Vec<_>>();
            let mut want = vec![0.0; m * n];
            gemm_f64(&mut want, &wide(&a), &wide(&b), (m, n, k), false, false);
            let mut c = vec![f32::NAN; m * n];
            gemm(&mut c, Mat::new(&a, m, k), Mat::new(&b, k, n), 1.0, false);
            gemm(&mut c, Mat::new(&a, m, k), Mat::new(&b, k, n), 0.5, true);
            let mut turned = vec![0.0; k * n];
            turn(&b, n, k, &mut turned, k, 0);
            let mut same = vec![f32::NAN; m * n];
            gemm_then(&mut same, Mat::new(&a, m, k), Mat::new(&turned, n, k).t(), 1.5, false, &|tile| {
                for i in tile.rows() {
                    tile.row(i).iter_mut().for_each(|c| *c += 1.0);
                }
            });
            for (c, same) in c.iter().zip(same) {
                assert!((c + 1.0 - same).abs() < 1e-3, "{m} {n} {k}: {c} {same}");
            }
            for (c, w) in c.iter().zip(want) {
                assert!((*c as f64 - 1.5 * w).abs() < 1e-3, "{m} {n} {k}: {c} {w}");
            }
        }
    }
}
