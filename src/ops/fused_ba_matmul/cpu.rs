//! The frozen product on the CPU. Weights that are not f32 are decoded block by block where they are used: there is
//! never an f32 copy of the whole.

use super::FusedBa;
use crate::Format;
use crate::ops::gemm::{Mat, gemm, gemm_strided};
use rayon::prelude::*;

/// Rows of `x` up to which a decoded row of the weight is used at once, while it is in the nearest cache.
const FEW: usize = 8;
/// Values that are decoded at a time: 2 MiB.
const BLOCK: usize = 1 << 19;

impl FusedBa<'_> {
    pub(super) fn cpu_product(&self, x: &[f32], y: &mut [f32], m: usize) {
        let (k, n) = (self.inputs(), self.outputs());
        let cols = self.w.cols();
        let shards = self.w.shards();
        if let ([shard], Format::F32) = (shards, self.w.format()) {
            let w = Mat::new(shard.data.f32(), self.w.rows(), cols);
            let w = if self.nt { w.t() } else { w };
            return gemm(y, Mat::new(x, m, k), w, 1.0, self.add);
        }
        if self.nt && m <= FEW {
            return self.few_rows(x, y, m);
        }
        let most = (BLOCK / cols.max(1)).clamp(16, 512);
        let largest = shards.iter().map(|s| s.rows).max().unwrap_or(0);
        // Equal blocks: a small one at the end would leave threads idle.
        let block = largest.div_ceil(largest.div_ceil(most).max(1)).next_multiple_of(16).min(largest.max(1));
        let mut values = vec![0f32; block * cols];
        let mut add = self.add;
        for shard in shards {
            for r in (0..shard.rows).step_by(block) {
                let rows = block.min(shard.rows - r);
                let values = &mut values[..rows * cols];
                self.w.decode_into(shard, r..r + rows, values);
                let (w, at) = (Mat::new(values, rows, cols), shard.first + r);
                if self.nt {
                    if m > 0 {
                        gemm_strided(&mut y[at..], n, Mat::new(x, m, k), w.t(), 1.0, self.add);
                    }
                } else {
                    gemm(y, Mat::new(x, m, k).columns(at, rows), w, 1.0, add);
                    add = true;
                }
            }
        }
        if self.w.rows() == 0 && !self.add {
            y.fill(0.0);
        }
    }

    /// `y = x W^T` for few rows: each row of the weight is decoded once, and multiplied with all rows of `x`.
    fn few_rows(&self, x: &[f32], y: &mut [f32], m: usize) {
        let (cols, n) = (self.w.cols(), self.w.rows());
        if m == 0 || n == 0 {
            return;
        }
        // [n, m]: the transpose of what is added to y.
        let mut products = vec![0f32; n * m];
        let task = (32_768 / cols.max(1)).max(1);
        products.par_chunks_mut(task * m).enumerate().for_each(|(t, out)| {
            let mut row = vec![0f32; cols];
            for (i, out) in out.chunks_mut(m).enumerate() {
                let at = t * task + i;
                if let Some(shard) = self.w.shard_of(at) {
                    self.w.dots(shard, at - shard.first, x, &mut row, out);
                }
            }
        });
        for (i, y) in y.chunks_mut(n).enumerate() {
            for (y, p) in y.iter_mut().zip(products.chunks(m)) {
                *y = if self.add { *y + p[i] } else { p[i] };
            }
        }
    }
}
