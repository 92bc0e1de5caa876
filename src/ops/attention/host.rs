//! The CPU lane: blocks of queries against blocks of keys, dense products on both sides of the softmax.

use super::Dims;
use crate::ops::gemm::{Mat, gemm_here};
use crate::ops::math::{dot, exp, max, sum};
use crate::simd::{add_rows, dots, vectorised, wide};
use rayon::prelude::*;

/// Queries and keys of one score block: with D = 64 everything stays in the first two cache levels.
const QUERIES: usize = 64;
const KEYS: usize = 128;
/// Heads whose private gradients of k and v are held at once: memory against parallel tasks.
const HEADS_AT_ONCE: usize = 16;

// One query, as in generation: a dense product would be mostly preparation.
vectorised! {
    fn dots_of_rows(x: &[f32], rows: Vec<&[f32]>, out: &mut [f32]) {
        dots::<Simd>(out, x, &rows);
    }
}
vectorised! {
    fn add_scaled_rows(scales: &[f32], rows: Vec<&[f32]>, out: &mut [f32]) {
        add_rows::<Simd>(out, scales, &rows);
    }
}

/// Inputs of both directions.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub valid: Option<&'a [u32]>,
}

/// One head: where its rows lie.
#[derive(Clone, Copy)]
struct Head<'a> {
    dims: &'a Dims,
    x: Inputs<'a>,
    batch: usize,
    head: usize,
}

impl<'a> Head<'a> {
    /// Rows `i0 .. i0 + n` of this head in a tensor `[B, S, H, D]`.
    fn queries(&self, data: &'a [f32], i0: usize, n: usize) -> Mat<'a> {
        let Dims { s, h, d, .. } = *self.dims;
        Mat::strided(&data[((self.batch * s + i0) * h + self.head) * d..], n, d, h * d)
    }
    /// Row `i` of this head in a tensor `[B, S, H, D]`.
    fn query(&self, data: &'a [f32], i: usize) -> &'a [f32] {
        let Dims { s, h, d, .. } = *self.dims;
        &data[((self.batch * s + i) * h + self.head) * d..][..d]
    }
    /// Rows `j0 .. j0 + n` of this head's keys in a tensor `[B, room, KV, D]`.
    fn keys(&self, data: &'a [f32], j0: usize, n: usize) -> Mat<'a> {
        let Dims { room, h, kv, d, .. } = *self.dims;
        Mat::strided(&data[((self.batch * room + j0) * kv + self.head / (h / kv)) * d..], n, d, kv * d)
    }
    /// The same, row by row.
    fn key_rows(&self, data: &'a [f32], j0: usize, n: usize) -> Vec<&'a [f32]> {
        let Dims { room, h, kv, d, .. } = *self.dims;
        let row = |j: usize| &data[((self.batch * room + j) * kv + self.head / (h / kv)) * d..][..d];
        (j0..j0 + n).map(row).collect()
    }
    /// Scores `[n, w]` of queries from `i0` and keys from `j0`; minus infinity where a key is not visible.
    #[inline(always)]
    fn scores(&self, out: &mut [f32], i0: usize, n: usize, j0: usize, w: usize) {
        match n {
            1 => {
                dots_of_rows(self.query(self.x.q, i0), self.key_rows(self.x.k, j0, w), &mut out[..w]);
                out[..w].iter_mut().for_each(|s| *s *= self.dims.scale);
            }
            _ => {
                let (q, k) = (self.queries(self.x.q, i0, n), self.keys(self.x.k, j0, w));
                gemm_here(out, q, k.t(), self.dims.scale, false);
            }
        }
        let valid = self.x.valid.map(|m| &m[self.batch * self.dims.t + j0..][..w]);
        for (r, row) in out[..n * w].chunks_mut(w).enumerate() {
            let seen = (self.dims.offset() + i0 + r + 1).saturating_sub(j0).min(w);
            row[seen..].fill(f32::NEG_INFINITY);
            if let Some(valid) = valid {
                for (s, _) in row.iter_mut().zip(valid).filter(|(_, v)| **v == 0) {
                    *s = f32::NEG_INFINITY;
                }
            }
        }
    }

    #[inline(always)]
    fn forward(&self, i0: usize, o: &mut [&mut [f32]], lse: &mut [f32]) {
        let (n, d) = (o.len(), self.dims.d);
        let end = self.dims.offset() + i0 + n;
        let (mut top, mut total) = (vec![f32::NEG_INFINITY; n], vec![0f32; n]);
        let (mut acc, mut scores) = (vec![0f32; n * d], vec![0f32; n * KEYS.min(end)]);
        for j0 in (0..end).step_by(KEYS) {
            let w = KEYS.min(end - j0);
            self.scores(&mut scores, i0, n, j0, w);
            for (r, row) in scores[..n * w].chunks_mut(w).enumerate() {
                let best = max(row).max(top[r]);
                if best == f32::NEG_INFINITY {
                    // Nothing visible yet; a NaN counts as visible and spreads.
                    row.iter_mut().filter(|v| !v.is_nan()).for_each(|v| *v = 0.0);
                    continue;
                }
                row.iter_mut().for_each(|v| *v = exp(*v - best));
                let shrink = exp(top[r] - best);
                total[r] = total[r] * shrink + sum(row);
                acc[r * d..][..d].iter_mut().for_each(|v| *v *= shrink);
                top[r] = best;
            }
            match n {
                1 => add_scaled_rows(&scores[..w], self.key_rows(self.x.v, j0, w), &mut acc),
                _ => gemm_here(&mut acc, Mat::new(&scores, n, w), self.keys(self.x.v, j0, w), 1.0, true),
            }
        }
        for (r, (o, acc)) in o.iter_mut().zip(acc.chunks(d)).enumerate() {
            let empty = total[r] == 0.0;
            let inverse = if empty { 1.0 } else { 1.0 / total[r] };
            o.iter_mut().zip(acc).for_each(|(o, a)| *o = a * inverse);
            lse[r] = if empty { 0.0 } else { top[r] + total[r].ln() };
        }
    }

    /// `dq` by rows, `dk` and `dv` `[T, D]` of this head alone.
    #[inline(always)]
    fn backward(&self, y: Outputs<'_>, dq: &mut [&mut [f32]], dk: &mut [f32], dv: &mut [f32]) {
        let Dims { s, t, d, .. } = *self.dims;
        let offset = self.dims.offset();
        dk.fill(0.0);
        dv.fill(0.0);
        let lse = &y.lse[(self.batch * self.dims.h + self.head) * s..][..s];
        let mut scores = vec![0f32; QUERIES.min(s) * KEYS.min(t)];
        let (mut dp, mut acc) = (scores.clone(), vec![0f32; QUERIES.min(s) * d]);
        for i0 in (0..s).step_by(QUERIES) {
            let n = QUERIES.min(s - i0);
            let (q, dy) = (self.queries(self.x.q, i0, n), self.queries(y.dy, i0, n));
            let delta: Vec<f32> =
                (i0..i0 + n).map(|i| dot(self.query(y.o, i), self.query(y.dy, i))).collect();
            acc.fill(0.0);
            let end = offset + i0 + n;
            for j0 in (0..end).step_by(KEYS) {
                let w = KEYS.min(end - j0);
                self.scores(&mut scores, i0, n, j0, w);
                gemm_here(&mut dp, dy, self.keys(self.x.v, j0, w).t(), 1.0, false);
                for (r, row) in scores[..n * w].chunks_mut(w).enumerate() {
                    for (p, dp) in row.iter_mut().zip(&mut dp[r * w..]) {
                        *p = exp(*p - lse[i0 + r]);
                        *dp = *p * (*dp - delta[r]) * self.dims.scale;
                    }
                }
                let (p, ds) = (Mat::new(&scores, n, w), Mat::new(&dp, n, w));
                gemm_here(&mut acc, ds, self.keys(self.x.k, j0, w), 1.0, true);
                gemm_here(&mut dk[j0 * d..], ds.t(), q, 1.0, true);
                gemm_here(&mut dv[j0 * d..], p.t(), dy, 1.0, true);
            }
            for (to, from) in dq[i0..].iter_mut().zip(acc.chunks(d)).take(n) {
                to.copy_from_slice(from);
            }
        }
    }
}

/// What the forward pass left and the gradient of its output.
#[derive(Clone, Copy)]
pub(super) struct Outputs<'a> {
    pub o: &'a [f32],
    pub lse: &'a [f32],
    pub dy: &'a [f32],
}

/// The rows of a tensor `[B, S, H, D]` by head, then by blocks of `block` rows.
fn by_head<'a>(y: &'a mut [f32], dims: &Dims, block: usize) -> Vec<Vec<&'a mut [f32]>> {
    let Dims { s, h, d, .. } = *dims;
    let blocks = s.div_ceil(block);
    let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
    tasks.resize_with(dims.b * h * blocks, || Vec::with_capacity(block.min(s)));
    for (row, values) in y.chunks_mut(d).enumerate() {
        let (batch, i, head) = (row / h / s, row / h % s, row % h);
        tasks[(batch * h + head) * blocks + i / block].push(values);
    }
    tasks
}

pub(super) fn forward(dims: &Dims, x: Inputs<'_>, o: &mut [f32], lse: &mut [f32]) {
    let Dims { s, h, .. } = *dims;
    if s == 0 {
        return;
    }
    let blocks = s.div_ceil(QUERIES);
    let lse: Vec<&mut [f32]> = lse.chunks_mut(s).flat_map(|l| l.chunks_mut(QUERIES)).collect();
    by_head(o, dims, QUERIES).into_par_iter().zip(lse).enumerate().for_each(|(task, (mut o, lse))| {
        let head = task / blocks;
        let head = Head { dims, x, batch: head / h, head: head % h };
        wide(|| head.forward(task % blocks * QUERIES, &mut o, lse));
    });
}

pub(super) fn backward(
    dims: &Dims,
    x: Inputs<'_>,
    y: Outputs<'_>,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let Dims { b, s, t, h, kv, d, .. } = *dims;
    if s == 0 {
        dk.fill(0.0);
        dv.fill(0.0);
        return;
    }
    // Every head sums into memory of its own; the heads of a group are then added in order.
    let batches = HEADS_AT_ONCE.div_ceil(h).min(b.max(1));
    let mut own = vec![0f32; 2 * batches * h * t * d];
    let (own_k, own_v) = own.split_at_mut(batches * h * t * d);
    let mut heads = by_head(dq, dims, s).into_iter();
    for first in (0..b).step_by(batches) {
        let n = batches.min(b - first);
        let rows: Vec<_> = heads.by_ref().take(n * h).collect();
        let parts = own_k.par_chunks_mut(t * d).zip(own_v.par_chunks_mut(t * d));
        rows.into_par_iter().zip(parts).enumerate().for_each(|(task, (mut dq, (dk, dv)))| {
            let head = Head { dims, x, batch: first + task / h, head: task % h };
            wide(|| head.backward(y, &mut dq, dk, dv));
        });
        for (to, from) in [(&mut *dk, &*own_k), (&mut *dv, &*own_v)] {
            let to = &mut to[first * t * kv * d..][..n * t * kv * d];
            to.par_chunks_mut(kv * d).with_min_len(16).enumerate().for_each(|(row, to)| {
                let (batch, j) = (row / t, row % t);
                for (c, to) in to.chunks_mut(d).enumerate() {
                    let part = |i: usize| &from[((batch * h + c * (h / kv) + i) * t + j) * d..][..d];
                    to.copy_from_slice(part(0));
                    for i in 1..h / kv {
                        to.iter_mut().zip(part(i)).for_each(|(a, v)| *a += v);
                    }
                }
            });
        }
    }
}
