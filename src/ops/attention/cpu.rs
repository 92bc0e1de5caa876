//! The CPU back end: blocks of queries against blocks of keys, dense products on both sides of the softmax.

use super::Dims;
use crate::engine::cpu::gemm::{Mat, gemm_here, with_scratch};
use crate::engine::cpu::math::{exp, exp_all, max, tanh};
use crate::simd::{add_rows, dot, dots, vectorised};
use rayon::prelude::*;
use std::ops::Range;

/// Queries and keys of one score block: with D = 64 everything stays in the second cache, and what is made of the keys
/// serves many queries.
const QUERIES: usize = 192;
const KEYS: usize = 128;
/// Keys of a block that not all of its queries see.
const NEAR: usize = 64;
/// Tasks whose private gradients of k and v are held at once: memory against parallel tasks.
const TASKS_AT_ONCE: usize = 16;

// One query, as in generation: a dense product would be mostly preparation.
vectorised! {
    fn dots_of_rows(simd: _, x: &[f32], rows: Vec<&[f32]>, out: &mut [f32]) {
        dots(simd, out, x, &rows);
    }
}
vectorised! {
    fn add_scaled_rows(simd: _, scales: &[f32], rows: Vec<&[f32]>, out: &mut [f32]) {
        add_rows(simd, out, scales, &rows);
    }
}

vectorised! {
    /// Turns scores `[n, w]` into exponentials below the largest score so far, and keeps their sums and `acc` in step.
    fn softmax(simd: _, scores: &mut [f32], w: usize, top: &mut [f32], total: &mut [f32], acc: &mut [f32]) {
        let d = acc.len() / top.len();
        for (r, row) in scores.chunks_mut(w).enumerate() {
            let best = max(simd, row).max(top[r]);
            if best == f32::NEG_INFINITY {
                // Nothing visible yet; a NaN counts as visible and spreads.
                for v in row {
                    *v = if v.is_nan() { *v } else { 0.0 };
                }
                continue;
            }
            let sum = exp_all(simd, row, best);
            // Only a new largest score changes what was summed.
            if best != top[r] {
                let shrink = exp(simd, top[r] - best);
                total[r] *= shrink;
                for v in &mut acc[r * d..][..d] {
                    *v *= shrink;
                }
                top[r] = best;
            }
            total[r] += sum;
        }
    }
}
vectorised! {
    /// Inner products of rows.
    fn row_dots(simd: _, left: &[&[f32]], right: &[&[f32]], out: &mut [f32]) {
        for (r, out) in out.iter_mut().enumerate() {
            *out = dot(simd, left[r], right[r]);
        }
    }
}
vectorised! {
    /// Turns scores into `cap tanh(score / cap)`.
    fn softcap_all(simd: _, scores: &mut [f32], cap: f32) {
        for s in scores {
            *s = cap * tanh(simd, *s / cap);
        }
    }
}
vectorised! {
    /// Turns scores `[n, w]` into probabilities, and their gradients into those of the products of q and k.
    fn probabilities(simd: _, scores: &mut [f32], gradients: &mut [f32], w: usize, lse: &[f32], delta: &[f32], scale: f32) {
        for (r, (row, gradients)) in scores.chunks_mut(w).zip(gradients.chunks_mut(w)).enumerate() {
            for (p, g) in row.iter_mut().zip(gradients) {
                *p = exp(simd, *p - lse[r]);
                *g = *p * (*g - delta[r]) * scale;
            }
        }
    }
}

vectorised! {
    /// The same for capped scores, whose gradients go through the cap: its slope is `1 - tanh^2`.
    fn capped_probabilities(
        simd: _, scores: &mut [f32], gradients: &mut [f32], w: usize, lse: &[f32], delta: &[f32], scale: f32, cap: f32,
    ) {
        for (r, (row, gradients)) in scores.chunks_mut(w).zip(gradients.chunks_mut(w)).enumerate() {
            for (p, g) in row.iter_mut().zip(gradients) {
                // A hidden score is minus infinity.
                let tanh = (*p / cap).max(-1.0);
                *p = exp(simd, *p - lse[r]);
                *g = *p * (*g - delta[r]) * (1.0 - tanh * tanh) * scale;
            }
        }
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

/// Keys, and those of some queries that see one of them, counted from the first of these queries.
struct Block {
    keys: Range<usize>,
    queries: Range<usize>,
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
    /// Blocks of keys that some of the `n` queries from `i0` on see.
    fn blocks(&self, i0: usize, n: usize, most: usize) -> impl Iterator<Item = Block> {
        let dims = *self.dims;
        let first = dims.seen(i0);
        let last = dims.seen(i0 + n - 1);
        let mut at = first.start;
        std::iter::from_fn(move || {
            let j0 = at;
            let whole = last.start <= j0 && j0 + most <= first.end;
            at = last.end.min(j0 + if whole { most } else { NEAR });
            // Query i is at position offset + i, and sees ahead to key offset + i + ahead and behind to offset + i - behind.
            let from = j0.saturating_sub(dims.offset() + i0 + dims.ahead);
            let to = (at + dims.behind).saturating_sub(dims.offset() + i0).min(n);
            (j0 < at).then_some(Block { keys: j0..at, queries: from..to })
        })
    }
    /// Scores `[n, w]` of queries from `i0` and keys from `j0`; minus infinity where a key is not visible.
    fn scores(&self, out: &mut [f32], i0: usize, n: usize, j0: usize, w: usize) {
        match n {
            1 => {
                dots_of_rows(self.query(self.x.q, i0), self.key_rows(self.x.k, j0, w), &mut out[..w]);
                out[..w].iter_mut().for_each(|s| *s *= self.dims.scale);
            }
            _ => {
                let q = self.queries(self.x.q, i0, n);
                let k = self.keys(self.x.k, j0, w);
                gemm_here(out, q, k.t(), self.dims.scale, false);
            }
        }
        if let Some(cap) = self.dims.softcap {
            softcap_all(&mut out[..n * w], cap);
        }
        let valid = self.x.valid.map(|m| &m[self.batch * self.dims.t + j0..][..w]);
        // Most blocks have no hidden key.
        let valid = valid.filter(|valid| valid.contains(&0));
        for (r, row) in out[..n * w].chunks_mut(w).enumerate() {
            let seen = self.dims.seen(i0 + r);
            row[seen.end.saturating_sub(j0).min(w)..].fill(f32::NEG_INFINITY);
            row[..seen.start.saturating_sub(j0).min(w)].fill(f32::NEG_INFINITY);
            if let Some(valid) = valid {
                for (s, _) in row.iter_mut().zip(valid).filter(|(_, v)| **v == 0) {
                    *s = f32::NEG_INFINITY;
                }
            }
        }
    }

    fn forward(&self, i0: usize, o: &mut [&mut [f32]], lse: &mut [f32]) {
        let n = o.len();
        let d = self.dims.d;
        let mut top = vec![f32::NEG_INFINITY; n];
        let mut total = vec![0f32; n];
        let mut acc = vec![0f32; n * d];
        let mut scores = vec![0f32; n * (2 * KEYS).min(self.dims.t)];
        for Block { keys, queries } in self.blocks(i0, n, 2 * KEYS) {
            let j0 = keys.start;
            let w = keys.len();
            let m = queries.len();
            let acc = &mut acc[queries.start * d..queries.end * d];
            self.scores(&mut scores, i0 + queries.start, m, j0, w);
            softmax(&mut scores[..m * w], w, &mut top[queries.clone()], &mut total[queries], acc);
            match n {
                1 => add_scaled_rows(&scores[..w], self.key_rows(self.x.v, j0, w), acc),
                _ => gemm_here(acc, Mat::new(&scores, m, w), self.keys(self.x.v, j0, w), 1.0, true),
            }
        }
        for (r, (o, acc)) in o.iter_mut().zip(acc.chunks(d)).enumerate() {
            let empty = total[r] == 0.0;
            let inverse = if empty { 1.0 } else { 1.0 / total[r] };
            o.iter_mut().zip(acc).for_each(|(o, a)| *o = a * inverse);
            lse[r] = if empty { 0.0 } else { top[r] + total[r].ln() };
        }
    }

    /// What the queries from `first` on give: `dq` by rows, and their part of `dk` and `dv` `[T, D]` of this head alone.
    fn backward(&self, y: Outputs<'_>, first: usize, dq: &mut [&mut [f32]], dk: &mut [f32], dv: &mut [f32]) {
        let Dims { s, t, d, scale, softcap, .. } = *self.dims;
        dk.fill(0.0);
        dv.fill(0.0);
        let mut scores = vec![0f32; QUERIES.min(dq.len()) * KEYS.min(t)];
        let mut dp = scores.clone();
        let mut acc = vec![0f32; QUERIES.min(dq.len()) * d];
        for (i0, dq) in (first..).step_by(QUERIES).zip(dq.chunks_mut(QUERIES)) {
            let n = dq.len();
            let lse = &y.lse[(self.batch * self.dims.h + self.head) * s + i0..][..n];
            let [o, dy] = [y.o, y.dy].map(|y| (i0..i0 + n).map(|i| self.query(y, i)).collect::<Vec<_>>());
            let mut delta = vec![0f32; n];
            row_dots(&o, &dy, &mut delta);
            acc.fill(0.0);
            for Block { keys, queries } in self.blocks(i0, n, KEYS) {
                let j0 = keys.start;
                let w = keys.len();
                let r0 = queries.start;
                let m = queries.len();
                let q = self.queries(self.x.q, i0 + r0, m);
                let dy = self.queries(y.dy, i0 + r0, m);
                self.scores(&mut scores, i0 + r0, m, j0, w);
                gemm_here(&mut dp, dy, self.keys(self.x.v, j0, w).t(), 1.0, false);
                let gradients = &mut dp[..m * w];
                let lse = &lse[queries.clone()];
                let delta = &delta[queries];
                match softcap {
                    None => probabilities(&mut scores[..m * w], gradients, w, lse, delta, scale),
                    Some(cap) => {
                        capped_probabilities(&mut scores[..m * w], gradients, w, lse, delta, scale, cap);
                    }
                }
                let p = Mat::new(&scores, m, w);
                let ds = Mat::new(&dp, m, w);
                gemm_here(&mut acc[r0 * d..], ds, self.keys(self.x.k, j0, w), 1.0, true);
                gemm_here(&mut dk[j0 * d..], ds.t(), q, 1.0, true);
                gemm_here(&mut dv[j0 * d..], p.t(), dy, 1.0, true);
            }
            for (to, from) in dq.iter_mut().zip(acc.chunks(d)) {
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
        let batch = row / h / s;
        let i = row / h % s;
        let head = row % h;
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
        head.forward(task % blocks * QUERIES, &mut o, lse);
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
    // Of a long sequence each head has two tasks: earlier queries, and later ones, which see more unless all see alike.
    let earlier = if dims.ahead == 0 && dims.behind >= s { s * 7 / 10 } else { s / 2 };
    let split = if s > 2 * QUERIES { earlier.next_multiple_of(QUERIES) } else { s };
    let parts = s.div_ceil(split);
    // Every task sums into memory of its own; those of a group of heads are then added in order.
    let batches = TASKS_AT_ONCE.div_ceil(h * parts).min(b.max(1));
    let len = batches * h * parts * t * d;
    with_scratch(2 * len, |own| {
        let (own_k, own_v) = own.split_at_mut(len);
        let mut rows = by_head(dq, dims, split).into_iter();
        for first in (0..b).step_by(batches) {
            let n = batches.min(b - first);
            let rows: Vec<_> = rows.by_ref().take(n * h * parts).collect();
            let private = own_k.par_chunks_mut(t * d).zip(own_v.par_chunks_mut(t * d));
            rows.into_par_iter().zip(private).with_max_len(1).enumerate().for_each(
                |(task, (mut dq, (dk, dv)))| {
                    let head = task / parts;
                    let part = task % parts;
                    let head = Head { dims, x, batch: first + head / h, head: head % h };
                    head.backward(y, part * split, &mut dq, dk, dv);
                },
            );
            for (to, from) in [(&mut *dk, &*own_k), (&mut *dv, &*own_v)] {
                let to = &mut to[first * t * kv * d..][..n * t * kv * d];
                to.par_chunks_mut(kv * d).with_min_len(16).enumerate().for_each(|(row, to)| {
                    let batch = row / t;
                    let j = row % t;
                    let group = h / kv * parts;
                    for (c, to) in to.chunks_mut(d).enumerate() {
                        let part = |i: usize| &from[((batch * h * parts + c * group + i) * t + j) * d..][..d];
                        to.copy_from_slice(part(0));
                        for i in 1..group {
                            to.iter_mut().zip(part(i)).for_each(|(a, v)| *a += v);
                        }
                    }
                });
            }
        }
    });
}
