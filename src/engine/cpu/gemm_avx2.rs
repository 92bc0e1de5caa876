//! Products on one thread of a processor with AVX2: panels of `b` against rows of `a`.
//!
//! Six rows by sixteen columns of the result stay in twelve registers while the sum goes on. What is summed is cut into
//! blocks, and the block of `b` is laid out as the kernel reads it, sixteen columns after sixteen: it stays in the
//! second cache for all rows. Rows of `a` are read where they lie.

use super::gemm::Mat;
use super::tile::Dst;
use crate::simd::{Avx2, LANES, Set};
use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;

/// Rows and columns of the result that one call of the kernel makes.
const ROWS: usize = 6;
const COLS: usize = LANES;
/// Summed values of one block: with 256 columns, a block of `b` has 320 KiB.
const BLOCK: usize = 320;
/// Rows that are handed over together when they are done: a multiple of [`ROWS`], few enough to be in the cache still.
const DONE: usize = 48;
/// Steps of the sum that are written out: the loop is then a small part of what is to be decoded.
const UNROLLED: usize = 4;

thread_local! {
    static PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// The tile at `rows` and `cols` of `c = [c +] scale * a b`, where `b` has the columns of the tile alone; `done` is called
/// with rows of it that are complete.
///
/// # Safety
/// The tile lies in `c`, which nothing else uses. There is something to sum.
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn product(
    simd: Avx2,
    c: Dst,
    a: Mat<'_>,
    b: Mat<'_>,
    (rows, cols): (Range<usize>, Range<usize>),
    scale: f32,
    add: bool,
    done: &mut dyn FnMut(Range<usize>),
) {
    let k = a.cols;
    let n = cols.len();
    // Blocks of one length, but for the last.
    let block = k.div_ceil(k.div_ceil(BLOCK).max(1)).next_multiple_of(8);
    let mut values = PANELS.take();
    let room = block * (n.next_multiple_of(COLS) + ROWS);
    if values.len() < room {
        values.resize(room, 0.0);
    }
    let (own, panels) = values.split_at_mut(block * ROWS);
    for first in (0..k).step_by(block) {
        let sum = first..k.min(first + block);
        for (p, panel) in panels.chunks_mut(sum.len() * COLS).take(n.div_ceil(COLS)).enumerate() {
            lay_out(simd, b, sum.clone(), p * COLS..n.min((p + 1) * COLS), panel);
        }
        let add = add || first > 0;
        let mut complete = rows.start;
        for row in rows.clone().step_by(ROWS) {
            let height = ROWS.min(rows.end - row);
            let left = Left::of(a, row..row + height, sum.clone(), own);
            for (p, panel) in panels.chunks(sum.len() * COLS).take(n.div_ceil(COLS)).enumerate() {
                let width = COLS.min(n - p * COLS);
                // SAFETY: in the tile by the ranges; panels and rows have the values that the kernel reads.
                unsafe {
                    let at = c.at.add(row * c.stride + cols.start + p * COLS);
                    if (height, width) == (ROWS, COLS) {
                        left.multiply(simd, panel, at, c.stride, scale, add);
                        continue;
                    }
                    let mut whole = [0f32; ROWS * COLS];
                    left.multiply(simd, panel, whole.as_mut_ptr(), COLS, scale, false);
                    for (i, part) in whole.chunks(COLS).take(height).enumerate() {
                        let y = std::slice::from_raw_parts_mut(at.add(i * c.stride), width);
                        y.iter_mut().zip(part).for_each(|(y, v)| *y = if add { *y + v } else { *v });
                    }
                }
            }
            let end = row + height;
            if sum.end == k && (end - complete == DONE || end == rows.end) {
                done(complete..end);
                complete = end;
            }
        }
    }
    PANELS.set(values);
}

/// Columns `cols` of `b`, at most sixteen, as `[sum, 16]`.
#[target_feature(enable = "avx2,fma")]
fn lay_out(simd: Avx2, b: Mat<'_>, sum: Range<usize>, cols: Range<usize>, panel: &mut [f32]) {
    let k = sum.len();
    let w = cols.len();
    let from = &b.data[sum.start * b.row_stride + cols.start * b.col_stride..];
    if w < COLS {
        panel.fill(0.0);
    }
    match (b.row_stride, b.col_stride) {
        (stride, 1) => {
            for (q, to) in panel.as_chunks_mut::<COLS>().0.iter_mut().enumerate() {
                match from[q * stride..][..w].first_chunk::<COLS>() {
                    Some(row) => simd.store(simd.load(row), to),
                    None => to[..w].copy_from_slice(&from[q * stride..][..w]),
                }
            }
        }
        (1, stride) => {
            let squares = if w == COLS { k / 8 * 8 } else { 0 };
            for q in (0..squares).step_by(8) {
                for j in [0, 8] {
                    // SAFETY: eight values of the columns j..j + 8, from q on, to eight rows of the panel.
                    unsafe {
                        let to = panel.as_mut_ptr().add(q * COLS + j);
                        turn_eight(from.as_ptr().add(j * stride + q), stride, to, COLS);
                    }
                }
            }
            for q in squares..k {
                for j in 0..w {
                    panel[q * COLS + j] = from[j * stride + q];
                }
            }
        }
        (row, col) => {
            for q in 0..k {
                for j in 0..w {
                    panel[q * COLS + j] = from[q * row + j * col];
                }
            }
        }
    }
}

/// Eight rows of eight values, turned around.
///
/// # Safety
/// Both squares lie in memory.
#[target_feature(enable = "avx2,fma")]
unsafe fn turn_eight(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // Halves of rows r and r + 4 side by side, so that what follows stays within halves.
    // SAFETY: the square lies in memory, as the caller promises.
    let pair = |r: usize, half: usize| unsafe {
        let low = _mm256_castps128_ps256(_mm_loadu_ps(from.add(r * from_stride + 4 * half)));
        _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(from.add((r + 4) * from_stride + 4 * half)))
    };
    for half in 0..2 {
        let a = pair(0, half);
        let b = pair(1, half);
        let c = pair(2, half);
        let d = pair(3, half);
        let ab = _mm256_unpacklo_ps(a, b);
        let ba = _mm256_unpackhi_ps(a, b);
        let cd = _mm256_unpacklo_ps(c, d);
        let dc = _mm256_unpackhi_ps(c, d);
        let turned = [
            _mm256_shuffle_ps::<0x44>(ab, cd),
            _mm256_shuffle_ps::<0xee>(ab, cd),
            _mm256_shuffle_ps::<0x44>(ba, dc),
            _mm256_shuffle_ps::<0xee>(ba, dc),
        ];
        for (i, row) in turned.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(to.add((4 * half + i) * to_stride), row) };
        }
    }
}

/// Six rows of `a`, a block of what is summed: where they lie, or where they were copied to.
struct Left {
    at: *const f32,
    len: usize,
    /// From row to row, and from one summed value to the next: one of them is 1.
    row: usize,
    next: usize,
}

impl Left {
    /// Rows `rows` of `a`, at most six.
    fn of(a: Mat<'_>, rows: Range<usize>, sum: Range<usize>, own: &mut [f32]) -> Self {
        let from = &a.data[rows.start * a.row_stride + sum.start * a.col_stride..];
        let len = sum.len();
        if rows.len() == ROWS && (a.row_stride == 1 || a.col_stride == 1) {
            return Left { at: from.as_ptr(), len, row: a.row_stride, next: a.col_stride };
        }
        // Rows that are not there stay what they were: what comes of them is left out.
        if a.row_stride == 1 {
            for (q, to) in own.chunks_mut(ROWS).take(len).enumerate() {
                to[..rows.len()].copy_from_slice(&from[q * a.col_stride..][..rows.len()]);
            }
            return Left { at: own.as_ptr(), len, row: 1, next: ROWS };
        }
        for (r, to) in own.chunks_mut(len).take(rows.len()).enumerate() {
            let from = &from[r * a.row_stride..];
            match a.col_stride {
                1 => to.copy_from_slice(&from[..len]),
                next => to.iter_mut().zip(from.iter().step_by(next)).for_each(|(to, v)| *to = *v),
            }
        }
        Left { at: own.as_ptr(), len, row: len, next: 1 }
    }

    /// Six rows and sixteen columns `c = [c +] scale * rows * panel`.
    ///
    /// # Safety
    /// The rows and the panel have values for the whole sum, and `c` six rows of sixteen.
    #[target_feature(enable = "avx2,fma")]
    #[allow(clippy::needless_range_loop)] // Rows of `sums` are registers, and `r` is a distance as well.
    unsafe fn multiply(&self, simd: Avx2, panel: &[f32], c: *mut f32, stride: usize, scale: f32, add: bool) {
        debug_assert!(panel.len() >= self.len * COLS);
        for r in 0..ROWS {
            _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(r * stride).cast());
        }
        let mut sums = [simd.zeros(); ROWS];
        match self.next {
            // Three rows from either of two pointers: what one address can tell.
            // SAFETY: rows and panel have values for the whole sum, as the caller promises.
            1 => unsafe {
                let mut low = self.at;
                let mut high = low.add(3 * self.row);
                let mut b = panel.as_ptr();
                let step = |low: *const f32, high: *const f32, b: *const f32, sums: &mut [_; ROWS]| {
                    let b = simd.load(&*b.cast());
                    for r in 0..3 {
                        sums[r] = simd.mul_add(simd.all(*low.add(r * self.row)), b, sums[r]);
                    }
                    for r in 0..3 {
                        sums[3 + r] = simd.mul_add(simd.all(*high.add(r * self.row)), b, sums[3 + r]);
                    }
                };
                for _ in 0..self.len / UNROLLED {
                    for u in 0..UNROLLED {
                        step(low.add(u), high.add(u), b.add(u * COLS), &mut sums);
                    }
                    (low, high, b) = (low.add(UNROLLED), high.add(UNROLLED), b.add(UNROLLED * COLS));
                }
                for u in 0..self.len % UNROLLED {
                    step(low.add(u), high.add(u), b.add(u * COLS), &mut sums);
                }
            },
            // SAFETY: as above.
            next => unsafe {
                let mut a = self.at;
                for b in panel.as_chunks::<COLS>().0.iter().take(self.len) {
                    let b = simd.load(b);
                    for r in 0..ROWS {
                        sums[r] = simd.mul_add(simd.all(*a.add(r)), b, sums[r]);
                    }
                    a = a.wrapping_add(next);
                }
            },
        }
        let scale = simd.all(scale);
        for (r, sum) in sums.into_iter().enumerate() {
            // SAFETY: `c` has six rows of sixteen, as the caller promises.
            let c = unsafe { &mut *c.add(r * stride).cast::<[f32; COLS]>() };
            let old = if add { simd.load(c) } else { simd.zeros() };
            simd.store(simd.mul_add(sum, scale, old), c);
        }
    }
}
