//! The shrink of a mixture: `u[m,k] = a_{I[m,k]} . x[m]`, by rows of a pool that are never copied out.
//!
//! The backward pass uses it too: `v[m,k] = s b_{J[m,k]} . dy[m]`.

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::cpu::gemm::{FEW, Mat, gemm_every, turn, with_scratch};
use crate::engine::{
    Case, Meta, Op, OpSpec, Operand, Operands, Timed, TimedSizes, operands, run, run_in_place,
};
use crate::routing::{Dropout, Slots, drop_values, sample};
use crate::routing::{Selection, Units};
use crate::simd::{all_dots, dots, vectorised};
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "factor_gather",
    formula: "u[m,k] = s a_{I[m,k]} . x[m], and gate u",
    shaders: &[&SHADER],
    cases,
    timed,
};

const NAME: &str = "factor_gather";
/// Invocations of a workgroup: of `row`, and of `block`.
const WG: u32 = 64;
const WG_BLOCK: u32 = 32;
const PARTS: &[&str] = &[parts::GRID, parts::SUM, parts::RANDOM, parts::DROPOUT, parts::SLOTS];

macro_rules! variants {
    ($wg:ident $bytes:expr) => {
        variants!($wg $bytes; "token": 0 0 0, "unit": 0 0 1, "gated token": 1 0 0, "gated unit dropout": 1 1 1,)
    };
    ($wg:ident $bytes:expr; $($name:literal: $gate:literal $drop:literal $units:literal,)+) => {
        &[$(Variant {
            name: $name,
            consts: &[("WG", $wg), ("GATE", $gate), ("DROP", $drop), ("UNITS", $units)],
            parts: PARTS,
            backends: PORTABLE,
            workgroup_bytes: $bytes,
        }),+]
    };
}

params! {
    struct Params {
        rows: u32, d: u32, slots: u32, stride: u32, first: u32, scale: f32, s_base: u32, s_step: u32,
        s_k: u32, s_block: u32, s_pool_rows: u32, g_base: u32, g_step: u32, key0: u32, key1: u32,
        drop_p: f32, keep: f32,
    }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/factor_gather.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "block", variants: variants!(WG_BLOCK 0) },
        Entry { name: "row", variants: variants!(WG 4 * WG) },
    ],
};

/// `(x [M, D], pool [P, D] [, gates [L, G, K]]) -> u [M, slots of all linears] [, gated]`.
///
/// Only the columns of `slots` are written: run it in place when these are not all.
pub(crate) struct FactorGather<'a> {
    pub slots: &'a Slots,
    pub scale: f32,
    pub dropout: Option<Dropout>,
    /// What to use on a GPU instead of the chosen entry; only tests set it.
    pub force: Option<&'static str>,
}

/// Shrinks `x` by the pool: `u`, and `gate * u` (the same tensor where there are no gates).
pub(crate) fn shrink(
    x: &Tensor,
    pool: &Tensor,
    gates: Option<&Tensor>,
    slots: &Slots,
    scale: f32,
    dropout: Option<Dropout>,
) -> Result<(Tensor, Tensor)> {
    let op = FactorGather { slots, scale, dropout, force: None };
    let [u, gated] = run(&op, In { x, pool, gates })?;
    let gated = if gates.is_some() { gated } else { u.clone() };
    Ok((u, gated))
}

/// Like [`shrink`] for the columns of some linears of shared arrays; the second is empty where there are no gates.
pub(crate) fn shrink_into(
    out: [&mut Tensor; 2],
    x: &Tensor,
    pool: &Tensor,
    gates: Option<&Tensor>,
    slots: &Slots,
    scale: f32,
) -> Result<()> {
    let op = FactorGather { slots, scale, dropout: None, force: None };
    run_in_place(&op, out, In { x, pool, gates })
}

/// Rows of a task of a dense product.
const DENSE_ROWS: usize = 256;
/// Rows that a task groups by what they chose.
const GROUPED_ROWS: usize = 256;
/// Values of the input that one task reads.
const ROWS_OF: usize = 65_536;

vectorised! {
    /// The columns of the slots in rows of `u`, of which row `first` is the first.
    fn products(simd: _, op: &FactorGather<'_>, input: &[f32], pool: &[f32], d: usize, first: usize, u: &mut [f32]) {
        let view = op.slots.view();
        let width = op.slots.width();
        let stride = op.slots.all_columns();
        let column = op.slots.first_column();
        let mut dropped = vec![0f32; if op.dropout.is_some() { d } else { 0 }];
        let mut picks = Vec::with_capacity(width);
        let mut factors = Vec::with_capacity(width);
        for (m, u) in (first..).zip(u.chunks_mut(stride)) {
            let mut row = &input[m * d..(m + 1) * d];
            if let Some(p) = op.dropout {
                p.apply(m * d, row, &mut dropped);
                row = &dropped;
            }
            factors.clear();
            view.picks(m, &mut picks);
            factors.extend(picks.iter().map(|&at| &pool[at * d..][..d]));
            let u = &mut u[column..column + width];
            dots(simd, u, row, &factors);
            u.iter_mut().for_each(|u| *u *= op.scale);
        }
    }
}

vectorised! {
    /// The columns of the slots in rows of `u`, of which row `first` is the first, by groups of rows that chose an entry.
    /// `input` begins with that row.
    fn products_of_groups(simd: _, op: &FactorGather<'_>, input: &[f32], pool: &[f32], d: usize, first: usize, u: &mut [f32]) {
        let slots = op.slots;
        let view = slots.view();
        let stride = slots.all_columns();
        let block = slots.block;
        let choices = slots.dims().3;
        let rows = first..first + u.len() / stride;
        for l in 0..slots.count {
            let column = slots.first_column() + l * slots.per_linear();
            let sorted = view.by_entry(rows.clone(), l, 0..choices);
            for (entry, group) in sorted.groups() {
                let factors: Vec<&[f32]> =
                    (0..block).map(|i| &pool[(l * slots.pool_rows + entry * block + i) * d..][..d]).collect();
                let inputs: Vec<&[f32]> = group.iter().map(|c| &input[(c.row - first) * d..][..d]).collect();
                all_dots(simd, &factors, &inputs, |i, j, sum| {
                    let c = group[j];
                    u[(c.row - first) * stride + column + c.of * block + i] = op.scale * sum;
                });
            }
        }
    }
}

impl FactorGather<'_> {
    /// The columns of the slots where groups of rows chose the same entry.
    fn grouped(&self, [input, pool]: [&[f32]; 2], d: usize, u: &mut [f32]) {
        let stride = self.slots.all_columns();
        let rows = self.slots.units.rows().div_ceil(4).min(GROUPED_ROWS);
        u.par_chunks_mut(rows * stride).enumerate().for_each(|(t, u)| {
            let first = t * rows;
            let input = &input[first * d..][..u.len() / stride * d];
            let Some(dropout) = self.dropout else {
                return products_of_groups(self, input, pool, d, first, u);
            };
            with_scratch(input.len(), |dropped| {
                drop_values(dropout, first * d, input, dropped);
                products_of_groups(self, dropped, pool, d, first, u);
            });
        });
    }

    /// Rows of the outputs on this thread, of which row `first` is the first; `gated` is empty where there are no gates.
    pub fn rows(
        &self,
        [input, pool]: [&[f32]; 2],
        gates: Option<&[f32]>,
        d: usize,
        first: usize,
        [u, gated]: [&mut [f32]; 2],
    ) {
        products(self, input, pool, d, first, u);
        if let Some(gates) = gates {
            self.gate(gates, first, u, gated);
        }
    }

    /// The columns of the slots where every row takes the whole pool.
    fn dense(&self, [input, pool]: [&[f32]; 2], d: usize, u: &mut [f32]) {
        let width = self.slots.width();
        let stride = self.slots.all_columns();
        let column = self.slots.first_column();
        let mut turned = vec![0f32; d * width];
        turn(pool, d, width, &mut turned, width, 0);
        let pool = Mat::new(&turned, d, width);
        u.par_chunks_mut(DENSE_ROWS * stride).enumerate().for_each(|(t, u)| {
            let rows = u.len() / stride;
            let first = t * DENSE_ROWS * d;
            let input = &input[first..][..rows * d];
            let u = &mut u[column..];
            let Some(dropout) = self.dropout else {
                return gemm_every(u, stride, Mat::new(input, rows, d), pool, self.scale, false);
            };
            with_scratch(rows * d, |dropped| {
                drop_values(dropout, first, input, dropped);
                gemm_every(u, stride, Mat::new(dropped, rows, d), pool, self.scale, false);
            });
        });
    }

    /// `gated = u * gate` in the columns of the slots.
    fn gate(&self, gates: &[f32], first: usize, u: &[f32], gated: &mut [f32]) {
        let stride = self.slots.all_columns();
        let column = self.slots.first_column();
        let rows = u.chunks(stride).zip(gated.chunks_mut(stride));
        for (m, (u, gated)) in (first..).zip(rows) {
            for j in 0..self.slots.width() {
                gated[column + j] = u[column + j] * gates[self.slots.gate_index(m, j)];
            }
        }
    }
}

operands! {
    pub(crate) struct In { x, pool; gates }
}

impl Op<2> for FactorGather<'_> {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, operands: &In<'_>) -> Result<[Meta; 2]> {
        operands.require(NAME, DType::F32)?;
        let &In { x: input, pool, gates } = operands;
        self.slots.check(NAME, input.shape().rows(), pool)?;
        if pool.shape().last() != input.shape().last() {
            return Err(Error::shape(
                NAME,
                format!("a pool for the rows of {}", input.shape()),
                pool.shape(),
            ));
        }
        let (l, _, g, k) = self.slots.dims();
        if let Some(gates) = gates
            && gates.dims() != [l, g, k]
        {
            return Err(Error::shape(NAME, format!("gates [{l}, {g}, {k}]"), gates.shape()));
        }
        let out = Meta::f32(&[input.shape().rows(), self.slots.all_columns()])?;
        let gated = if gates.is_some() { out.clone() } else { Meta::f32(&[0])? };
        Ok([out, gated])
    }

    fn reference(&self, &In { x, pool, gates }: &In<'_>, [u, gated]: [&mut Host; 2]) {
        let d = x.shape().last();
        let view = self.slots.view();
        let stride = self.slots.all_columns();
        let first = self.slots.first_column();
        for m in 0..x.shape().rows() {
            let row = &x.f64()[m * d..(m + 1) * d];
            for j in 0..self.slots.width() {
                let factor = &pool.f64()[view.pick(m, j) * d..][..d];
                let keep = |c| self.dropout.map_or(1.0, |p| p.factor(m * d + c) as f64);
                let sum: f64 = (0..d).map(|c| factor[c] * row[c] * keep(c)).sum();
                let product = self.scale as f64 * sum;
                u.f64_mut()[m * stride + first + j] = product;
                if let Some(gates) = gates {
                    let gate = gates.f64()[self.slots.gate_index(m, j)];
                    gated.f64_mut()[m * stride + first + j] = product * gate;
                }
            }
        }
    }

    fn cpu(&self, &In { x, pool, gates }: &In<'_>, [u, gated]: [&mut Host; 2]) {
        let d = x.shape().last();
        let stride = self.slots.all_columns();
        if stride == 0 {
            return;
        }
        let inputs = [x.f32(), pool.f32()];
        // For few rows it costs more to turn the pool than to read it.
        if self.slots.dense && self.slots.units.rows() > FEW {
            return self.dense(inputs, d, u.f32_mut());
        }
        if self.slots.grouped(self.slots.units.rows()) {
            self.grouped(inputs, d, u.f32_mut());
            if let Some(gates) = gates {
                self.gate(gates.f32(), 0, u.f32(), gated.f32_mut());
            }
            return;
        }
        let rows = (ROWS_OF / d.max(1)).max(1);
        let tasks = u.f32_mut().par_chunks_mut(rows * stride);
        match gates {
            Some(gates) => {
                let tasks = tasks.zip(gated.f32_mut().par_chunks_mut(rows * stride)).enumerate();
                tasks.for_each(|(t, (u, gated))| {
                    self.rows(inputs, Some(gates.f32()), d, t * rows, [u, gated]);
                });
            }
            None => tasks.enumerate().for_each(|(t, u)| {
                self.rows(inputs, None, d, t * rows, [u, &mut []]);
            }),
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 2]) -> Result<()> {
        use crate::device::{AdapterClass, Bind, Dispatch, Grid, Parameters};
        let rows = x.x.shape().rows();
        let d = x.x.shape().last();
        let slots = self.slots.width();
        let gates = x.gates.map(|g| g.buffer());
        let (_, _, g, k) = self.slots.dims();
        let ([key0, key1], drop_p, keep) = Dropout::params(&self.dropout);
        let [s_base, s_step, s_k, s_block, s_pool_rows] = self.slots.params();
        let params = Params {
            rows: rows as u32,
            d: d as u32,
            slots: slots as u32,
            stride: self.slots.all_columns() as u32,
            first: self.slots.first_column() as u32,
            scale: self.scale,
            s_base,
            s_step,
            s_k,
            s_block,
            s_pool_rows,
            g_base: (self.slots.first * g * k) as u32,
            g_step: (g * k) as u32,
            key0,
            key1,
            drop_p,
            keep,
        };
        // A whole workgroup per product where there are too few of them to fill a GPU, and for rows of odd length.
        let items = rows * slots;
        let few = gpu.class() != AdapterClass::Software && items < 65_536;
        let entry = self.force.unwrap_or(if few || !d.is_multiple_of(4) { "row" } else { "block" });
        let (wg, groups) = match entry {
            "row" => (WG, items),
            _ => (WG_BLOCK, (rows.div_ceil(4) * slots.div_ceil(4)).div_ceil(WG_BLOCK as usize)),
        };
        let input = x.x.buffer();
        let units = self.slots.units.row_unit().map(|t| t.buffer());
        gpu.dispatch(Dispatch {
            shader: &SHADER,
            entry,
            consts: &[
                ("WG", wg),
                ("GATE", u32::from(gates.is_some())),
                ("DROP", u32::from(self.dropout.is_some())),
                ("UNITS", u32::from(units.is_some())),
            ],
            parts: PARTS,
            bind: &[
                Bind::Read(input),
                Bind::Read(x.pool.buffer()),
                Bind::Read(self.slots.idx.buffer()),
                Bind::or_unused(units, input),
                Bind::or_unused(gates, input),
                Bind::Write(y[0].buffer()),
                Bind::Write(y[1].buffer()),
            ],
            params: params.bytes(),
            grid: Grid::Linear(groups),
            flops: 2 * (items * d) as u64,
        })
    }
}

/// Choices of two linears for a test that forces kernels: 33 tokens, or units of different lengths.
pub(super) fn forced_selection(like: &Tensor, tokens: bool) -> Result<Selection> {
    let device = like.device();
    let units = if tokens { Units::tokens(33) } else { Units::ranges(device, &[0, 10, 10, 33], &[0.1; 33])? };
    let idx: Vec<u32> = (0..2 * units.count() * 4).map(|i| (i / 4 * 5 + i % 4) as u32 % 6).collect();
    let idx = Tensor::from_u32(device, &[2, 1, units.count(), 4], &idx)?;
    let gates = if tokens { None } else { Some(Operand::normal("gates", &[2, 3, 4]).on(device)?) };
    Selection::new(idx, gates, &units, 6, 1)
}

/// Dropout for the same tests.
pub(super) fn forced_dropout(tokens: bool) -> Option<Dropout> {
    (!tokens).then_some(Dropout { stream: crate::Stream::new(8), p: 0.3 })
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (entry, tokens) in [("row", true), ("block", true), ("row", false), ("block", false)] {
        let inputs = vec![Operand::normal("x", &[33, 68]).frozen(), Operand::normal("a", &[12, 68]).frozen()];
        all.push(Case::new(format!("{entry}, tokens {tokens}"), inputs, move |x| {
            let selection = forced_selection(&x[0], tokens)?;
            let slots = selection.slots_a();
            let dropout = forced_dropout(tokens);
            let op = FactorGather { slots: &slots, scale: 0.5, dropout, force: Some(entry) };
            let [u, gated] = run(&op, In { x: &x[0], pool: &x[1], gates: selection.gates() })?;
            Ok(vec![u, gated])
        }));
    }
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [m, d, e, k] = sizes.pick(sample::SMALL, sample::FULL);
    let inputs = vec![Operand::normal("x", &[m, d]).frozen(), Operand::normal("a", &[e, d]).frozen()];
    let costs = (2 * m * k * d, 4 * (m * d + e * d + m * k));
    let gather = Timed::new(format!("{m}x{d}, {k} of {e}"), inputs, costs, move |device| {
        let s = sample::tokens(device, [m, e, k], None)?;
        Ok(Box::new(move |x| Ok(vec![shrink(&x[0], &x[1], None, &s.slots_a(), 1.0, None)?.0])))
    });
    vec![gather.sums(2 * d + m)]
}
