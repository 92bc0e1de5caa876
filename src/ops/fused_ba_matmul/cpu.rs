//! The product on the CPU. Weights that are not f32 are decoded part by part where they are used: there is never an
//! f32 copy of the whole. What is added to the product is added to each tile while it is in the cache.

use super::{Expand, FusedBa};
use crate::Format;
use crate::engine::cpu::gemm::{FEW, Mat, gemm, gemm_here, gemm_made, gemm_then, gemm_to_tile, turn};
use crate::engine::cpu::tile::Tile;
use crate::engine::rows_per_task;
use crate::routing::drop_values;
use crate::simd::{add_rows, add_rows_to_four, vectorised};
use rayon::prelude::*;
use std::ops::Range;

/// Values that the backward product decodes at a time: 2 MiB.
const BLOCK: usize = 1 << 19;
/// Rows of a tile that get a dense update at a time.
const DENSE_ROWS: usize = 256;
/// Rows of a weight that are decoded and turned around at a time.
const ROWS: usize = 16;

/// What joins a product: nothing, a bias, a low-rank update.
#[derive(Clone, Copy)]
pub(super) struct Joins<'a> {
    pub bias: Option<&'a [f32]>,
    /// With the products of the shrink `u`, and the pool.
    pub expand: Option<(Expand<'a>, &'a [f32], &'a [f32])>,
}

impl FusedBa<'_> {
    pub(super) fn cpu_product(&self, x: &[f32], y: &mut [f32], m: usize, joins: Joins<'_>) {
        let k = self.inputs();
        let n = self.outputs();
        let shards = self.w.shards();
        let then = |tile: &mut Tile<'_>| joins.add_to(tile, n);
        if self.nt && m <= FEW {
            self.few_rows(x, y, m);
            if m * n > 0 {
                then(&mut Tile::of_rows(y, 0..m, n));
            }
            return;
        }
        if let ([shard], Format::F32) = (shards, self.w.format()) {
            let w = Mat::new(shard.data.f32(), self.w.rows(), self.w.cols());
            let w = if self.nt { w.t() } else { w };
            return gemm_then(y, Mat::new(x, m, k), w, 1.0, self.add, &then);
        }
        if self.nt {
            let columns = |range: &Range<usize>, panel: &mut [f32]| self.columns(range, panel);
            return gemm_made(y, Mat::new(x, m, k), n, &columns, 1.0, self.add, &then);
        }
        self.by_blocks(x, y, m, &then);
    }

    /// Rows `range` of the weight as the columns of a panel.
    fn columns(&self, range: &Range<usize>, panel: &mut [f32]) {
        let k = self.inputs();
        let mut rows = vec![0f32; ROWS.min(range.len()) * k];
        for first in range.clone().step_by(ROWS) {
            let n = ROWS.min(range.end - first);
            for (i, row) in rows.chunks_mut(k.max(1)).take(n).enumerate() {
                if let Some(shard) = self.w.shard_of(first + i) {
                    self.w.decode_row(shard, first + i - shard.first, row);
                }
            }
            turn(&rows, k, n, panel, range.len(), first - range.start);
        }
    }

    /// `y = x W`, over blocks of rows of the weight.
    fn by_blocks(&self, x: &[f32], y: &mut [f32], m: usize, then: &(dyn Fn(&mut Tile<'_>) + Sync)) {
        let k = self.inputs();
        let cols = self.w.cols();
        let most = (BLOCK / cols.max(1)).clamp(16, 512);
        let largest = self.w.shards().iter().map(|s| s.rows).max().unwrap_or(0);
        // Equal blocks: a small one at the end would leave threads idle.
        let block = largest.div_ceil(largest.div_ceil(most).max(1)).next_multiple_of(16).min(largest.max(1));
        let mut all = Vec::new();
        for shard in self.w.shards() {
            all.extend((0..shard.rows).step_by(block).map(|r| (shard, r..shard.rows.min(r + block))));
        }
        let mut values = vec![0f32; block * cols];
        for (i, (shard, rows)) in all.iter().enumerate() {
            let values = &mut values[..rows.len() * cols];
            self.w.decode_into(shard, rows.clone(), values);
            let x = Mat::new(x, m, k);
            let w = Mat::new(values, rows.len(), cols);
            let x = x.columns(shard.first + rows.start, rows.len());
            let add = self.add || i > 0;
            if i + 1 == all.len() { gemm_then(y, x, w, 1.0, add, then) } else { gemm(y, x, w, 1.0, add) }
        }
        if all.is_empty() {
            gemm_then(y, Mat::new(x, m, 0), Mat::new(&[], 0, cols), 1.0, self.add, then);
        }
    }

    /// `y = x W^T` for few rows: each row of the weight is decoded once, and multiplied with all rows of `x`.
    fn few_rows(&self, x: &[f32], y: &mut [f32], m: usize) {
        let cols = self.w.cols();
        let n = self.w.rows();
        if m == 0 || n == 0 {
            return;
        }
        let task = (65_536 / cols.max(1)).max(1);
        let input = self.w.input(x, m);
        let products = |t: usize, out: &mut [f32], m: usize| {
            let mut at = t * task;
            let end = t * task + out.len() / m;
            while let Some(shard) = self.w.shard_of(at).filter(|_| at < end) {
                let rows = at - shard.first..(end - shard.first).min(shard.rows);
                let n = rows.len();
                self.w.dots(shard, rows, &input, &mut out[(at - t * task) * m..][..n * m]);
                at += n;
            }
        };
        if m == 1 && !self.add {
            return y.par_chunks_mut(task).enumerate().for_each(|(t, out)| products(t, out, 1));
        }
        // [n, m]: the transpose of what is added to y.
        let mut all = vec![0f32; n * m];
        all.par_chunks_mut(task * m).enumerate().for_each(|(t, out)| products(t, out, m));
        for (i, y) in y.chunks_mut(n).enumerate() {
            for (y, p) in y.iter_mut().zip(all.chunks(m)) {
                *y = if self.add { *y + p[i] } else { p[i] };
            }
        }
    }
}

impl Joins<'_> {
    /// Adds them to a tile of rows of `n` values.
    fn add_to(&self, tile: &mut Tile<'_>, n: usize) {
        if let Some(bias) = self.bias {
            let bias = &bias[tile.cols()];
            for i in tile.rows() {
                tile.row(i).iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
        if let Some((e, u, pool)) = &self.expand {
            e.add_to(u, pool, tile, n);
        }
    }
}

impl Expand<'_> {
    /// Adds the low-rank update to rows of `n` values.
    pub fn cpu(&self, u: &[f32], pool: &[f32], y: &mut [f32], n: usize) {
        let all = self.slots.units.rows();
        // What a task reads of the pool serves all of its rows.
        let many = self.slots.dense || self.slots.grouped(all);
        let rows = if many { all.div_ceil(4).clamp(1, DENSE_ROWS) } else { rows_per_task(n) };
        y.par_chunks_mut((rows * n).max(1)).enumerate().for_each(|(t, y)| {
            let of = t * rows..t * rows + y.len() / n;
            self.add_to(u, pool, &mut Tile::of_rows(y, of, n), n);
        });
    }

    fn add_to(&self, u: &[f32], pool: &[f32], tile: &mut Tile<'_>, n: usize) {
        if self.slots.dense {
            self.dense(u, pool, tile, n);
        } else if self.slots.grouped(tile.rows().len()) {
            self.grouped(u, pool, tile, n);
        } else {
            expand(self, u, pool, tile, n);
        }
    }

    /// Adds it to a tile of rows of `n` values by groups of rows that chose the same entry.
    fn grouped(&self, u: &[f32], pool: &[f32], tile: &mut Tile<'_>, n: usize) {
        let Some(dropout) = self.dropout else {
            return expand_groups(self, u, pool, n, tile.cols().start, tile);
        };
        let cols = tile.cols();
        let width = cols.len();
        let last = tile.rows().end;
        let mut update = vec![0f32; DENSE_ROWS.min(tile.rows().len()) * width];
        let mut kept = vec![0f32; width];
        for m0 in tile.rows().step_by(DENSE_ROWS) {
            let rows = m0..last.min(m0 + DENSE_ROWS);
            let update = &mut update[..rows.len() * width];
            update.fill(0.0);
            let mut part = Tile::of_rows(update, rows.clone(), width);
            expand_groups(self, u, pool, n, cols.start, &mut part);
            for (m, update) in rows.zip(update.chunks(width)) {
                drop_values(dropout, m * n + cols.start, update, &mut kept);
                tile.row(m).iter_mut().zip(&kept).for_each(|(y, v)| *y += v);
            }
        }
    }

    /// Adds it to a tile of rows of `n` values where every row takes the whole pool.
    fn dense(&self, u: &[f32], pool: &[f32], tile: &mut Tile<'_>, n: usize) {
        let width = self.slots.width();
        let stride = self.slots.all_columns();
        let first = self.slots.first_column();
        let cols = tile.cols();
        let pool = Mat::new(pool, width, n).columns(cols.start, cols.len());
        let Some(dropout) = self.dropout else {
            let rows = self.slots.units.rows();
            let u = Mat::strided(&u[first.min(u.len())..], rows, width, stride);
            return gemm_to_tile(tile, u, pool, self.scale);
        };
        let mut update = vec![0f32; DENSE_ROWS.min(tile.rows().len()) * cols.len()];
        let mut kept = vec![0f32; cols.len()];
        let last = tile.rows().end;
        for m0 in tile.rows().step_by(DENSE_ROWS) {
            let rows = m0..last.min(m0 + DENSE_ROWS);
            let u = Mat::strided(&u[m0 * stride + first..], rows.len(), width, stride);
            gemm_here(&mut update, u, pool, self.scale, false);
            for (m, update) in rows.zip(update.chunks(cols.len())) {
                drop_values(dropout, m * n + cols.start, update, &mut kept);
                tile.row(m).iter_mut().zip(&kept).for_each(|(y, v)| *y += v);
            }
        }
    }
}

vectorised! {
    /// Adds the low-rank update to a tile, whose first column is column `first` of rows of `n` values. The choices of a row
    /// are added in their order, whatever other rows chose.
    fn expand_groups(simd: _, e: &Expand<'_>, u: &[f32], pool: &[f32], n: usize, first: usize, tile: &mut Tile<'_>) {
        let slots = e.slots;
        let view = slots.view();
        let stride = slots.all_columns();
        let block = slots.block;
        let width = tile.cols().len();
        for (l, of) in (0..slots.count).flat_map(|l| (0..slots.dims().3).map(move |of| (l, of))) {
            let column = slots.first_column() + l * slots.per_linear() + of * block;
            for (entry, group) in view.by_entry(tile.rows(), l, of..of + 1).groups() {
                let factor = l * slots.pool_rows + entry * block;
                let factors: Vec<&[f32]> =
                    (0..block).map(|i| &pool[(factor + i) * n + first..][..width]).collect();
                let coef = |row: usize, i: usize| e.scale * u[row * stride + column + i];
                let (fours, ones) = group.as_chunks::<4>();
                for four in fours {
                    let rows = four.map(|c| c.row);
                    let coefs: Vec<[f32; 4]> = (0..block).map(|i| rows.map(|row| coef(row, i))).collect();
                    add_rows_to_four(simd, tile.four_rows(rows), &coefs, &factors);
                }
                for one in ones {
                    let coefs: Vec<f32> = (0..block).map(|i| coef(one.row, i)).collect();
                    add_rows(simd, tile.row(one.row), &coefs, &factors);
                }
            }
        }
    }
}

vectorised! {
    /// Adds the low-rank update to a tile of rows of `n` values.
    fn expand(simd: _, e: &Expand<'_>, u: &[f32], pool: &[f32], tile: &mut Tile<'_>, n: usize) {
        let view = e.slots.view();
        let width = e.slots.width();
        let stride = e.slots.all_columns();
        let first = e.slots.first_column();
        let cols = tile.cols();
        let dropped = if e.dropout.is_some() { cols.len() } else { 0 };
        let mut update = vec![0f32; dropped];
        let mut kept = vec![0f32; dropped];
        let mut scaled = vec![0f32; width];
        let mut picks = Vec::with_capacity(width);
        let mut factors = Vec::with_capacity(width);
        for m in tile.rows() {
            scaled.iter_mut().zip(&u[m * stride + first..]).for_each(|(s, u)| *s = e.scale * u);
            factors.clear();
            view.picks(m, &mut picks);
            factors.extend(picks.iter().map(|&at| &pool[at * n..][cols.clone()]));
            match e.dropout {
                None => add_rows(simd, tile.row(m), &scaled, &factors),
                Some(dropout) => {
                    update.fill(0.0);
                    add_rows(simd, &mut update, &scaled, &factors);
                    dropout.apply(m * n + cols.start, &update, &mut kept);
                    tile.row(m).iter_mut().zip(&kept).for_each(|(y, v)| *y += v);
                }
            }
        }
    }
}
