//! Gradients of factor pools: each factor sums the rows that chose it, in order. The CPU sums by ranges of rows, which
//! may have a first use there (`Before`); software adapters give a task a block of columns of all factors; a GPU sorts the
//! choices by factor once and gives each factor its segment.
//! No atomics: two runs give the same bits.

use super::factor_gather::{forced_dropout, forced_selection};
use super::gemm::with_scratch;
use super::slots::{Dropout, Slots};
use super::{Case, Meta, Op, OpSpec, Operand, Selection, Units, rows_in_parallel, run};
#[cfg(feature = "gpu")]
use crate::Shape;
#[cfg(feature = "gpu")]
use crate::device::{AdapterClass, Bind, Dispatch, Gpu, Grid};
use crate::device::{Entry, Host, PORTABLE, Shader, Variant, parts};
use crate::simd::{add_rows, vectorised};
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "factor_scatter",
    formula: "d_pool[f] = s sum over choices of f of coef x",
    shaders: &[&SHADER],
    cases,
};

const NAME: &str = "factor_scatter";
/// Invocations of a workgroup: of `lists` and `sum`, and of `block`.
const WG: u32 = 64;
const WG_BLOCK: u32 = 16;
const PARTS: &[&str] = &[parts::GRID, parts::RANDOM, parts::DROPOUT, parts::SLOTS];

macro_rules! variants {
    ($wg:ident; $($name:literal: $drop:literal $units:literal,)+) => {
        &[$(Variant {
            name: $name,
            consts: &[("WG", $wg), ("DROP", $drop), ("UNITS", $units)],
            parts: PARTS,
            backends: PORTABLE,
            workgroup_bytes: 0,
        }),+]
    };
}
static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/factor_scatter.wgsl"),
    entries: &[
        Entry { name: "lists", variants: variants![WG; "lists": 0 0,] },
        Entry { name: "sum", variants: variants![WG; "token": 0 0, "unit": 0 1, "unit dropout": 1 1,] },
        Entry {
            name: "block",
            variants: variants![WG_BLOCK; "token": 0 0, "unit": 0 1, "unit dropout": 1 1,],
        },
    ],
};

/// Choices sorted by factor, for every linear and side of a selection, on a GPU.
#[cfg(feature = "gpu")]
#[derive(Debug, Clone)]
pub(super) struct Lists {
    /// `[L, P, E+1]`
    starts: Tensor,
    /// `[L, P, G*K]`: unit * K + choice, ascending within a factor.
    pairs: Tensor,
}

#[cfg(feature = "gpu")]
impl Lists {
    /// Sorts the choices `idx [L, P, G, K]`, each below `factors`.
    pub fn new(gpu: &Gpu, idx: &Tensor, factors: usize) -> Result<Self> {
        let dims = idx.dims();
        let [l, p, g, k] = [dims[0], dims[1], dims[2], dims[3]];
        let make = |n| Tensor::undefined(idx.device(), Shape::new(&[l, p, n])?, DType::U32);
        let lists = Lists { starts: make(factors + 1)?, pairs: make(g * k)? };
        let mut params: Params = bytemuck::Zeroable::zeroed();
        params.choices = [factors, g, l * p].map(|v| v as u32);
        params.slots[2] = k as u32;
        gpu.dispatch(Dispatch {
            shader: &SHADER,
            entry: "lists",
            consts: &[("WG", WG), ("DROP", 0), ("UNITS", 0)],
            parts: PARTS,
            bind: &[
                Bind::Write(lists.starts.buffer()),
                Bind::Write(lists.pairs.buffer()),
                Bind::Read(idx.buffer()),
            ],
            params: bytemuck::bytes_of(&params),
            grid: Grid::Linear((l * p * factors).div_ceil(WG as usize)),
            flops: 2 * (idx.len() * factors) as u64,
        })?;
        Ok(lists)
    }
}

/// `(coef [M, slots of all linears], rows [M, D]) -> d_pool [count * factors * block, D]`
pub(crate) struct FactorScatter<'a> {
    pub slots: &'a Slots,
    pub selection: &'a Selection,
    pub scale: f32,
    pub dropout: Option<Dropout>,
    /// What to use on a GPU instead of the chosen entry; only tests set it.
    #[cfg_attr(not(feature = "gpu"), allow(dead_code))]
    pub force: Option<&'static str>,
}

/// Sums `scale * coef[m,j] * rows[m]` into the pool rows that the slots chose.
pub(crate) fn scatter(
    coef: &Tensor,
    rows: &Tensor,
    slots: &Slots,
    selection: &Selection,
    scale: f32,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    Ok(run(&FactorScatter { slots, selection, scale, dropout, force: None }, &[coef, rows])?.swap_remove(0))
}

impl FactorScatter<'_> {
    fn out_rows(&self) -> usize {
        self.slots.count * self.selection.pool_rows()
    }
}

/// Rows that are added to a factor at once.
const GROUP: usize = 8;
/// Rows of a task where its unit has that many. Rows that are their own units: this, or a quarter of them.
const ROWS: usize = 128;

/// Rows of which one task makes sums of its own: all of one unit, or of any units that are one row each.
fn tasks(units: &Units) -> Vec<Range<usize>> {
    let rows = units.rows();
    // All tokens are one range, of which any part will do.
    let (count, most) = match units.is_tokens() {
        true => (1, ROWS.max(rows.div_ceil(4))),
        false => (units.count(), ROWS),
    };
    let mut all = Vec::new();
    for unit in 0..count {
        let range = if units.is_tokens() { 0..rows } else { units.range(unit) };
        let step = range.len().div_ceil(range.len().div_ceil(most).max(1)).max(1);
        all.extend(range.clone().step_by(step).map(|m| m..range.end.min(m + step)));
    }
    all
}

/// Called with the rows of a group and the part of the arrays beside them: see [`FactorScatter::sums`].
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
    /// Adds the rows of a task to `sums`, which has a row for each slot of its unit, or for each of the pool.
    fn add(op: &FactorScatter<'_>, coef: &[f32], rows: &[f32], d: usize, sums: &mut [f32], task: Task<'_>, before: Before<'_>) {
        let (view, width, tokens) = (op.slots.view(), op.slots.width(), op.slots.units.is_tokens());
        let (stride, first) = (op.slots.all_columns(), op.slots.first_column());
        let mut dropped = vec![0f32; if op.dropout.is_some() { GROUP * d } else { 0 }];
        let Task { rows: all, beside: [one, two] } = task;
        sums.fill(0.0);
        for m0 in all.clone().step_by(GROUP) {
            let count = GROUP.min(all.end - m0);
            let part = |len: usize| match len {
                0 => 0..0,
                _ => (m0 - all.start) * stride..(m0 - all.start + count) * stride,
            };
            let (of_one, of_two) = (part(one.len()), part(two.len()));
            before(m0..m0 + count, &mut one[of_one], &mut two[of_two]);
            let mut group: [&[f32]; GROUP] = [&[]; GROUP];
            for (i, row) in group.iter_mut().enumerate().take(count) {
                *row = &rows[(m0 + i) * d..][..d];
            }
            if let Some(p) = op.dropout {
                for (i, out) in dropped.chunks_mut(d).enumerate().take(count) {
                    let kept = out.iter_mut().zip(group[i]).enumerate();
                    kept.for_each(|(c, (o, v))| *o = p.factor((m0 + i) * d + c) * v);
                }
                group.iter_mut().zip(dropped.chunks(d)).take(count).for_each(|(row, kept)| *row = kept);
            }
            let c = |i: usize, j: usize| op.scale * coef[(m0 + i) * stride + first + j];
            if tokens {
                for i in 0..count {
                    for j in 0..width {
                        let sum = &mut sums[view.pick(m0 + i, j) * d..][..d];
                        add_rows::<FMA>(sum, &[c(i, j)], &group[i..i + 1]);
                    }
                }
                continue;
            }
            for j in 0..width {
                let mut of = [0f32; GROUP];
                of.iter_mut().enumerate().take(count).for_each(|(i, of)| *of = c(i, j));
                add_rows::<FMA>(&mut sums[j * d..][..d], &of[..count], &group[..count]);
            }
        }
    }
}

impl FactorScatter<'_> {
    /// The sums by tasks, each over rows in their order, then those of all tasks. `before` is called with each group of
    /// rows first, and may write their part of `beside` (rows of all columns of the slots, or empty): what it reads of
    /// the rows is then in the cache.
    pub fn sums(
        &self,
        [coef, rows]: [&[f32]; 2],
        d: usize,
        beside: [&mut [f32]; 2],
        before: Before<'_>,
        y: &mut [f32],
    ) {
        let (tokens, width, stride) =
            (self.slots.units.is_tokens(), self.slots.width(), self.slots.all_columns());
        let of_task = d * if tokens { self.out_rows() } else { width };
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
            let run = |(task, sums): (Task<'_>, &mut [f32])| add(self, coef, rows, d, sums, task, before);
            match work.len() {
                0 | 1 => work.into_iter().for_each(run),
                _ => work.into_par_iter().with_max_len(1).for_each(run),
            }
            // Where the sums of a factor are: for units, with the slots that chose it.
            let mut found: Vec<Vec<usize>> = vec![vec![]; self.out_rows()];
            if !tokens {
                let view = self.slots.view();
                for (t, rows) in ranges.iter().enumerate() {
                    (0..width).for_each(|j| found[view.pick(rows.start, j)].push(t * width + j));
                }
            }
            rows_in_parallel(y, d, |row, y| {
                y.fill(0.0);
                let mut add =
                    |at: usize| y.iter_mut().zip(&partial[at * d..][..d]).for_each(|(y, v)| *y += v);
                match tokens {
                    true => (0..ranges.len()).for_each(|t| add(t * self.out_rows() + row)),
                    false => found[row].iter().for_each(|&at| add(at)),
                }
            });
        });
    }
}

impl Op for FactorScatter<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        let (coef, rows) = (x[0], x[1]);
        coef.expect(NAME, DType::F32)?;
        rows.expect(NAME, DType::F32)?;
        if coef.dims() != [rows.shape().rows(), self.slots.all_columns()]
            || rows.shape().rows() != self.slots.units.rows()
        {
            return Err(Error::shape(
                NAME,
                format!("coefficients {} for rows {}", coef.shape(), rows.shape()),
            ));
        }
        Ok(vec![Meta::f32(&[self.out_rows(), rows.shape().last()])?])
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let (d, view) = (x[1].shape().last(), self.slots.view());
        let (stride, first) = (self.slots.all_columns(), self.slots.first_column());
        let (coef, rows, y) = (x[0].f64(), x[1].f64(), y[0].f64_mut());
        y.fill(0.0);
        for m in 0..x[1].shape().rows() {
            for j in 0..self.slots.width() {
                let c = self.scale as f64 * coef[m * stride + first + j];
                let at = view.pick(m, j) * d;
                for i in 0..d {
                    let keep = self.dropout.map_or(1.0, |p| p.factor(m * d + i) as f64);
                    y[at + i] += c * keep * rows[m * d + i];
                }
            }
        }
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        let (d, coef, rows) = (x[1].shape().last(), x[0].f32(), x[1].f32());
        self.sums([coef, rows], d, [&mut [], &mut []], &|_, _, _| (), y[0].f32_mut());
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        let (_, sides, g, _) = self.slots.dims();
        let (d, out_rows) = (x[1].shape().last(), self.out_rows());
        let (key, drop_p, keep) = Dropout::params(&self.dropout);
        let sizes = [d, out_rows, self.slots.all_columns(), self.slots.first, sides, self.slots.side];
        let [base, step, k, block, _] = self.slots.params();
        let params = Params {
            choices: [self.selection.factors(), g, 0].map(|v| v as u32),
            sizes: sizes.map(|v| v as u32),
            scale: self.scale,
            slots: [base, step, k, block, self.selection.pool_rows() as u32],
            key,
            drop_p,
            keep,
        };
        let units = self.slots.units.start().map(|t| t.buffer());
        let coef = x[0].buffer();
        // A few processors want few loads; a GPU wants many invocations.
        let whole = d.is_multiple_of(4) && self.slots.per_linear().is_multiple_of(4);
        let fold = out_rows.clamp(1, 65_535);
        let block = gpu.class() == AdapterClass::Software && whole;
        let entry = self.force.unwrap_or(if block { "block" } else { "sum" });
        let (wg, choices, grid) = match entry {
            "block" => (
                WG_BLOCK,
                [Bind::Read(self.slots.idx.buffer()), Bind::Unused(coef)],
                Grid::Linear((d / 4 * self.slots.count).div_ceil(WG_BLOCK as usize)),
            ),
            _ => {
                let lists = self.selection.lists(gpu)?;
                (
                    WG,
                    [Bind::Read(lists.starts.buffer()), Bind::Read(lists.pairs.buffer())],
                    Grid::Xyz(d.div_ceil(WG as usize), fold, out_rows.div_ceil(fold)),
                )
            }
        };
        let [first, second] = choices;
        gpu.dispatch(Dispatch {
            shader: &SHADER,
            entry,
            consts: &[
                ("WG", wg),
                ("DROP", u32::from(self.dropout.is_some())),
                ("UNITS", u32::from(units.is_some())),
            ],
            parts: PARTS,
            bind: &[
                Bind::Read(coef),
                Bind::Read(x[1].buffer()),
                first,
                second,
                Bind::or_unused(units, coef),
                Bind::Write(y[0].buffer()),
            ],
            params: bytemuck::bytes_of(&params),
            grid,
            flops: 2 * (x[1].len() * self.slots.width()) as u64,
        })
    }
}

#[cfg(feature = "gpu")]
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    /// factors, units, groups
    choices: [u32; 3],
    /// d, out_rows, stride, first, sides, side
    sizes: [u32; 6],
    scale: f32,
    slots: [u32; 5],
    key: [u32; 2],
    drop_p: f32,
    keep: f32,
}

fn cases() -> Vec<Case> {
    let mut all = super::mixture_linears::scatter_cases();
    for (entry, tokens) in [("sum", true), ("block", true), ("sum", false), ("block", false)] {
        let inputs =
            vec![Operand::normal("coef", &[33, 8]).frozen(), Operand::normal("rows", &[33, 68]).frozen()];
        let run = move |x: &[Tensor]| {
            let selection = forced_selection(&x[0], tokens)?;
            let (slots, dropout) = (selection.slots_a(), forced_dropout(tokens));
            let op = FactorScatter {
                slots: &slots,
                selection: &selection,
                scale: 0.5,
                dropout,
                force: Some(entry),
            };
            run(&op, &[&x[0], &x[1]])
        };
        all.push(Case::new(format!("{entry}, tokens {tokens}"), inputs, run).sums(33));
    }
    all
}
