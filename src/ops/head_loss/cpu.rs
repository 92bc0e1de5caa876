//! The walk over the vocabulary on the CPU. The vocabulary has parts, each walked by one task for all rows: logits are used
//! where they were made, and tasks do not wait for each other.

use super::NONE;
use crate::engine::cpu::gemm::{Mat, gemm_here};
use crate::engine::cpu::math::{exp, exp_all, max, tanh};
use crate::simd::{Target, vectorised};
use crate::weight::Weight;
use rayon::prelude::*;
use std::ops::Range;

/// Parts of the vocabulary.
const PARTS: usize = 8;
/// Rows of the vocabulary that a task takes at once: with some hundred rows of h, their logits stay in the cache.
const CHUNK: usize = 256;
/// Values of a part's sums, for so many rows of h at once: 4 MiB.
const SUMS: usize = 1 << 20;

/// Running softmax of one row of h.
#[derive(Clone, Copy)]
struct Row {
    top: f32,
    total: f32,
    logit: f32,
}

const EMPTY: Row = Row { top: f32::NEG_INFINITY, total: 0.0, logit: f32::NAN };

vectorised! {
    /// Turns logits into `cap tanh(logit / cap)`, and writes the derivative, `1 - tanh^2`.
    fn softcap_all(simd: _, z: &mut [f32], slopes: &mut [f32], cap: f32) {
        for (z, slope) in z.iter_mut().zip(slopes) {
            let tanh = tanh(simd, *z / cap);
            *z = cap * tanh;
            *slope = 1.0 - tanh * tanh;
        }
    }
}

vectorised! {
    /// Turns logits `[rows, len]` of the vocabulary from `first` on into exponentials, and keeps sums in step with them.
    fn softmax(simd: _, z: &mut [f32], len: usize, first: usize, targets: &[u32], rows: &mut [Row], sums: &mut [f32], d: usize) {
        for (i, (z, row)) in z.chunks_mut(len).zip(rows).enumerate() {
            if let Some(z) = (targets[i] as usize).checked_sub(first).and_then(|t| z.get(t)) {
                row.logit = *z;
            }
            let best = max(simd, z).max(row.top);
            let sum = exp_all(simd, z, best);
            let shrink = exp(simd, row.top - best);
            // Only a new largest logit changes it.
            if shrink != 1.0 && !sums.is_empty() {
                for s in &mut sums[i * d..(i + 1) * d] {
                    *s *= shrink;
                }
            }
            row.total = row.total * shrink + sum;
            row.top = best;
        }
    }
}

/// One part of the vocabulary for some rows of h: their softmax over it, and `sum_v exp(z_v - top) W_v` in `sums [n, D]`
/// when it is not empty.
fn walk(
    w: &Weight,
    softcap: Option<f32>,
    part: Range<usize>,
    h: &[f32],
    targets: &[u32],
    sums: &mut [f32],
) -> Vec<Row> {
    let n = targets.len();
    let d = w.cols();
    let mut rows = vec![EMPTY; n];
    let mut z = vec![0f32; n * CHUNK.min(part.len())];
    let mut slopes = softcap.map_or(vec![], |_| z.clone());
    let mut at = part.start;
    while let Some(shard) = w.shard_of(at).filter(|_| at < part.end) {
        let len = CHUNK.min(part.end - at).min(shard.first + shard.rows - at);
        let values = w.decode(shard, at - shard.first..at - shard.first + len);
        let of = Mat::new(&values, len, d);
        let z = &mut z[..n * len];
        gemm_here(z, Mat::new(h, n, d), of.t(), 1.0, false);
        if let Some(cap) = softcap {
            softcap_all(z, &mut slopes, cap);
        }
        softmax(z, len, at, targets, &mut rows, sums, d);
        if !sums.is_empty() {
            z.iter_mut().zip(&slopes).for_each(|(z, slope)| *z *= slope);
            gemm_here(sums, Mat::new(z, n, len), of, 1.0, true);
        }
        at += len;
    }
    rows
}

/// The loss of rows of h that all have a target; with `dh`, their gradient.
fn block(w: &Weight, softcap: Option<f32>, h: &[f32], targets: &[u32], dh: &mut [f32]) -> f64 {
    let n = targets.len();
    let d = w.cols();
    let of_part = w.rows().div_ceil(PARTS).next_multiple_of(CHUNK);
    let parts: Vec<Range<usize>> =
        (0..w.rows()).step_by(of_part).map(|first| first..w.rows().min(first + of_part)).collect();
    let mut sums = vec![0f32; parts.len() * dh.len()];
    let mut all: Vec<&mut [f32]> = if dh.is_empty() {
        parts.iter().map(|_| &mut [][..]).collect()
    } else {
        sums.chunks_mut(n * d).collect()
    };
    let walked: Vec<Vec<Row>> = (&parts, &mut all)
        .into_par_iter()
        .with_max_len(1)
        .map(|(part, sums)| walk(w, softcap, part.clone(), h, targets, sums))
        .collect();
    // The parts together: one row of h.
    let merge = |i: usize, dh: &mut [f32]| {
        let top = walked.iter().fold(f32::NEG_INFINITY, |top, rows| top.max(rows[i].top));
        let shrink: Vec<f32> = walked.iter().map(|rows| exp(Target, rows[i].top - top)).collect();
        let total: f32 = walked.iter().zip(&shrink).map(|(rows, shrink)| rows[i].total * shrink).sum();
        let logit = walked.iter().map(|rows| rows[i].logit).find(|z| !z.is_nan()).unwrap_or(f32::NAN);
        let loss = (top + total.ln()) as f64 - logit as f64;
        if dh.is_empty() {
            return loss;
        }
        dh.fill(0.0);
        for (sums, shrink) in all.iter().zip(shrink) {
            let share = shrink / total;
            dh.iter_mut().zip(&sums[i * d..]).for_each(|(g, s)| *g += share * s);
        }
        let target = targets[i] as usize;
        if let Some(s) = w.shard_of(target) {
            let mut row = vec![0f32; d];
            w.decode_row(s, target - s.first, &mut row);
            let slope = softcap.map_or(1.0, |cap| 1.0 - (logit / cap) * (logit / cap));
            dh.iter_mut().zip(&row).for_each(|(g, w)| *g -= slope * w);
        }
        loss
    };
    let losses: Vec<f64> = if dh.is_empty() {
        (0..n).map(|i| merge(i, &mut [])).collect()
    } else {
        dh.par_chunks_mut(d).with_min_len(16).enumerate().map(|(i, dh)| merge(i, dh)).collect()
    };
    losses.iter().sum()
}

/// The summed loss of the rows of `h [R, D]` that have a target, and the gradient of all.
pub(super) fn loss(
    w: &Weight,
    softcap: Option<f32>,
    h: &[f32],
    targets: &[u32],
    mut dh: Option<&mut [f32]>,
) -> f32 {
    let d = w.cols();
    let list: Vec<usize> = (0..targets.len()).filter(|&r| targets[r] != NONE).collect();
    if let Some(dh) = &mut dh {
        dh.fill(0.0);
    }
    let mut total = 0f64;
    for list in list.chunks((SUMS / d.max(1)).clamp(64, 1024)) {
        let hidden: Vec<f32> = list.iter().flat_map(|&r| &h[r * d..][..d]).copied().collect();
        let wanted: Vec<u32> = list.iter().map(|&r| targets[r]).collect();
        let mut gradient = vec![0f32; if dh.is_some() { hidden.len() } else { 0 }];
        total += block(w, softcap, &hidden, &wanted, &mut gradient);
        if let (Some(dh), true) = (&mut dh, d > 0) {
            let rows = list.iter().zip(gradient.chunks(d));
            rows.for_each(|(&r, g)| dh[r * d..][..d].copy_from_slice(g));
        }
    }
    total as f32
}
