//! The sums on the CPU: of units by ranges of their rows, of tokens by columns, one by one or in groups of one entry.

use super::FactorScatter;
use crate::engine::cpu::gemm::{Mat, gemm, gemm_made, with_scratch};
use crate::engine::cpu::tile::{Tile, blocks_in_parallel};
use crate::engine::rows_in_parallel;
use crate::routing::{Dropout, QUAD, Units, drop_values};
use crate::simd::{LANES, add_rows, add_rows_to_four, prefetch, vectorised};
use rayon::prelude::*;
use std::ops::Range;

/// Rows that are added to a factor at once.
const GROUP: usize = 8;
/// Rows of a task where its unit has that many.
const ROWS: usize = 128;
/// Columns whose sums over all rows stay in the cache, for pools of a few hundred factors.
const COLS: usize = 64;
/// Columns of a task of groups: what they have of a thousand rows stays in the cache.
const GROUPED_COLS: usize = 128;
/// Rows with dropout that one dense product takes.
const DROPPED: usize = 256;
/// Rows ahead of which such a piece of a row is asked for: processors do not foresee steps of whole rows.
const AHEAD: usize = 8;

/// Rows of which one task makes sums of its own: all of one unit.
fn tasks(units: &Units) -> Vec<Range<usize>> {
    let mut all = Vec::new();
    for unit in 0..units.count() {
        let range = units.range(unit);
        let step = range.len().div_ceil(range.len().div_ceil(ROWS).max(1)).max(1);
        all.extend(range.clone().step_by(step).map(|m| m..range.end.min(m + step)));
    }
    all
}

/// Called with the rows of a group and the part of the arrays beside them: see [`FactorScatter::sums_of_units`].
pub(crate) type Before<'a> = &'a (dyn Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync);

/// Takes the first `n` values, or all.
fn take<'a>(rest: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let n = n.min(rest.len());
    let (part, after) = std::mem::take(rest).split_at_mut(n);
    *rest = after;
    part
}

/// One task: its rows, and their part of the arrays beside them.
struct Task<'a> {
    rows: Range<usize>,
    beside: [&'a mut [f32]; 2],
}

vectorised! {
    /// Adds the rows of a task to `sums`, which has a row for each slot of its unit.
    fn add_of_unit(simd: _, op: &FactorScatter<'_>, coef: &[f32], rows: &[f32], d: usize, sums: &mut [f32], task: Task<'_>, before: Before<'_>) {
        let stride = op.slots.all_columns();
        let first = op.slots.first_column();
        let mut dropped = vec![0f32; if op.dropout.is_some() { GROUP * d } else { 0 }];
        let Task { rows: all, beside: [one, two] } = task;
        sums.fill(0.0);
        for m0 in all.clone().step_by(GROUP) {
            let count = GROUP.min(all.end - m0);
            let part = |len: usize| match len {
                0 => 0..0,
                _ => (m0 - all.start) * stride..(m0 - all.start + count) * stride,
            };
            let of_one = part(one.len());
            let of_two = part(two.len());
            before(m0..m0 + count, &mut one[of_one], &mut two[of_two]);
            let mut group: [&[f32]; GROUP] = [&[]; GROUP];
            for (i, row) in group.iter_mut().enumerate().take(count) {
                *row = &rows[(m0 + i) * d..][..d];
            }
            if let Some(p) = op.dropout {
                for (i, out) in dropped.chunks_mut(d).enumerate().take(count) {
                    p.apply((m0 + i) * d, group[i], out);
                }
                group.iter_mut().zip(dropped.chunks(d)).take(count).for_each(|(row, kept)| *row = kept);
            }
            for j in 0..op.slots.width() {
                let mut of = [0f32; GROUP];
                for (i, of) in of.iter_mut().enumerate().take(count) {
                    *of = op.scale * coef[(m0 + i) * stride + first + j];
                }
                add_rows(simd, &mut sums[j * d..][..d], &of[..count], &group[..count]);
            }
        }
    }
}

/// A choice of a row: the factor, and what the row is multiplied by.
#[derive(Clone, Copy)]
struct Term {
    factor: u32,
    coef: f32,
}

vectorised! {
    /// At most [`COLS`] columns of the sums of all rows, each of which has `width` terms. `sums` is scratch: `COLS` values for
    /// each row of the tile. In the tile itself they would lie far apart, and push each other out of the cache.
    fn add_of_tokens(simd: _, terms: &[Term], width: usize, rows: &[f32], d: usize, dropout: Option<Dropout>, sums: &mut [f32], tile: &mut Tile<'_>) {
        let first = tile.cols().start;
        let n = tile.cols().len();
        let mut kept = [0f32; COLS];
        let mut row = [simd.zeros(); COLS / LANES];
        sums.fill(0.0);
        for (m, terms) in terms.chunks(width.max(1)).enumerate() {
            let mut x = &rows[m * d + first..][..n];
            if dropout.is_some() || n < COLS {
                match dropout {
                    Some(p) => p.apply(m * d + first, x, &mut kept[..n]),
                    None => kept[..n].copy_from_slice(x),
                }
                x = &kept;
            }
            prefetch(rows, (m + AHEAD) * d + first..(m + AHEAD) * d + first + n);
            let (chunks, _) = x.as_chunks::<LANES>();
            for q in 0..COLS / LANES {
                row[q] = simd.load(&chunks[q]);
            }
            for t in terms {
                let coef = simd.all(t.coef);
                let (sums, _) = sums[t.factor as usize * COLS..][..COLS].as_chunks_mut::<LANES>();
                for q in 0..COLS / LANES {
                    simd.store(simd.mul_add(coef, row[q], simd.load(&sums[q])), &mut sums[q]);
                }
            }
        }
        for (factor, sums) in tile.rows().zip(sums.chunks(COLS)) {
            tile.row(factor).copy_from_slice(&sums[..n]);
        }
    }
}

/// Rows that chose the same entry, and what they are multiplied by for four of its pool rows.
struct Group {
    factor: usize,
    rows: Vec<usize>,
    coefs: Vec<[f32; QUAD]>,
}

vectorised! {
    /// Some columns of the sums of all groups; `rows` has those columns alone where there is dropout, else all `d`.
    fn add_of_groups(simd: _, groups: &[Group], rows: &[f32], d: usize, first: usize, tile: &mut Tile<'_>) {
        let n = tile.cols().len();
        for factor in tile.rows() {
            tile.row(factor).fill(0.0);
        }
        for group in groups {
            let inputs: Vec<&[f32]> = group.rows.iter().map(|m| &rows[m * d + first..][..n]).collect();
            let four = std::array::from_fn(|i| group.factor + i);
            add_rows_to_four(simd, tile.four_rows(four), &group.coefs, &inputs);
        }
    }
}

impl FactorScatter<'_> {
    /// The sums of rows that are their own units, by groups that chose the same entry.
    pub(super) fn sums_of_groups(&self, [coef, rows]: [&[f32]; 2], d: usize, y: &mut [f32]) {
        let slots = self.slots;
        let view = slots.view();
        let stride = slots.all_columns();
        let all = slots.units.rows();
        let mut groups = Vec::new();
        for l in 0..slots.count {
            let column = slots.first_column() + l * slots.per_linear();
            for (entry, chosen) in view.by_entry(0..all, l, 0..slots.dims().3).groups() {
                for first in (0..slots.block).step_by(QUAD) {
                    let coefs = chosen.iter().map(|c| {
                        let at = c.row * stride + column + c.of * slots.block + first;
                        std::array::from_fn(|i| self.scale * coef[at + i])
                    });
                    groups.push(Group {
                        factor: l * slots.pool_rows + entry * slots.block + first,
                        rows: chosen.iter().map(|c| c.row).collect(),
                        coefs: coefs.collect(),
                    });
                }
            }
        }
        blocks_in_parallel(y, d, GROUPED_COLS, |tile| {
            let cols = tile.cols();
            let Some(dropout) = self.dropout else {
                return add_of_groups(&groups, rows, d, cols.start, tile);
            };
            with_scratch(all * cols.len(), |kept| {
                for (m, kept) in kept.chunks_mut(cols.len()).enumerate() {
                    drop_values(dropout, m * d + cols.start, &rows[m * d..][cols.clone()], kept);
                }
                add_of_groups(&groups, kept, cols.len(), 0, tile);
            });
        });
    }

    /// The sums of rows that are their own units: by columns, each over all rows in their order.
    pub(super) fn sums_of_tokens(&self, [coef, rows]: [&[f32]; 2], d: usize, y: &mut [f32]) {
        let view = self.slots.view();
        let width = self.slots.width();
        let stride = self.slots.all_columns();
        let first = self.slots.first_column();
        let mut picks = Vec::with_capacity(width);
        let mut terms = Vec::with_capacity(coef.len());
        for (m, coef) in coef.chunks(stride.max(1)).enumerate() {
            view.picks(m, &mut picks);
            let chosen = picks.iter().zip(&coef[first..first + width]);
            terms.extend(chosen.map(|(&at, c)| Term { factor: at as u32, coef: self.scale * c }));
        }
        blocks_in_parallel(y, d, COLS, |tile| {
            with_scratch(tile.rows().len() * COLS, |sums| {
                add_of_tokens(&terms, width, rows, d, self.dropout, sums, tile);
            });
        });
    }

    /// The sums where every row takes the whole pool: a dense product, by blocks of rows with dropout.
    pub(super) fn dense_sums(&self, [coef, rows]: [&[f32]; 2], d: usize, y: &mut [f32]) {
        let width = self.slots.width();
        let stride = self.slots.all_columns();
        let first = self.slots.first_column();
        let all = self.slots.units.rows();
        let coef = |rows: &Range<usize>| match rows.len() {
            0 => Mat::new(&[], 0, width).t(),
            n => Mat::strided(&coef[rows.start * stride + first..], n, width, stride).t(),
        };
        let Some(dropout) = self.dropout else {
            return gemm(y, coef(&(0..all)), Mat::new(rows, all, d), self.scale, false);
        };
        for m0 in (0..all.max(1)).step_by(DROPPED) {
            let block = m0..all.min(m0 + DROPPED);
            let columns = |cols: &Range<usize>, panel: &mut [f32]| {
                for (m, kept) in block.clone().zip(panel.chunks_mut(cols.len())) {
                    drop_values(dropout, m * d + cols.start, &rows[m * d..][cols.clone()], kept);
                }
            };
            gemm_made(y, coef(&block), d, &columns, self.scale, m0 > 0, &|_| ());
        }
    }

    /// The sums of units by tasks, each over rows in their order, then those of all tasks. `before` is called with each
    /// group of rows first, and may write their part of `beside` (rows of all columns of the slots, or empty): what it
    /// reads of the rows is then in the cache.
    pub fn sums_of_units(
        &self,
        [coef, rows]: [&[f32]; 2],
        d: usize,
        beside: [&mut [f32]; 2],
        before: Before<'_>,
        y: &mut [f32],
    ) {
        let width = self.slots.width();
        let stride = self.slots.all_columns();
        let of_task = d * width;
        let ranges = tasks(&self.slots.units);
        with_scratch(of_task * ranges.len(), |partial| {
            let mut parts = partial.chunks_mut(of_task.max(1));
            let [mut one, mut two] = beside;
            let mut work = Vec::with_capacity(ranges.len());
            for rows in &ranges {
                let n = rows.len() * stride;
                let beside = [take(&mut one, n), take(&mut two, n)];
                work.push((Task { rows: rows.clone(), beside }, parts.next().unwrap_or_default()));
            }
            let run = |(task, sums): (Task<'_>, &mut [f32])| {
                add_of_unit(self, coef, rows, d, sums, task, before);
            };
            match work.len() {
                0 | 1 => work.into_iter().for_each(run),
                _ => work.into_par_iter().with_max_len(1).for_each(run),
            }
            // Where the sums of a factor are: with the slots that chose it.
            let view = self.slots.view();
            let mut picks = Vec::with_capacity(width);
            let mut found: Vec<Vec<usize>> = vec![vec![]; self.out_rows()];
            for (t, rows) in ranges.iter().enumerate() {
                view.picks(rows.start, &mut picks);
                picks.iter().enumerate().for_each(|(j, &at)| found[at].push(t * width + j));
            }
            rows_in_parallel(y, d, |row, y| {
                y.fill(0.0);
                for &at in &found[row] {
                    y.iter_mut().zip(&partial[at * d..][..d]).for_each(|(y, v)| *y += v);
                }
            });
        });
    }
}
