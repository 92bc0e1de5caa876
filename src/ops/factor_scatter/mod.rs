//! Gradients of factor pools: each factor sums the rows that chose it, in order. The CPU sums units by ranges of rows,
//! tokens by columns, and tokens of wider entries by groups that chose the same one; software adapters give a task a block
//! of columns of all factors; a GPU sorts the choices by factor once and gives each factor its segment.
//! No atomics: two runs give the same bits.

mod cpu;

use super::factor_gather::{forced_dropout, forced_selection};
use crate::Shape;
use crate::device::{
    AdapterClass, Bind, Dispatch, Entry, Gpu, Grid, Host, PORTABLE, Parameters, Shader, Variant, params,
    parts,
};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Timed, TimedSizes, operands, run1};
use crate::routing::Lists;
use crate::routing::Selection;
use crate::routing::{Dropout, Slots, sample};
use crate::{DType, Error, Result, Tensor};
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "factor_scatter",
    formula: "d_pool[f] = s sum over choices of f of coef x",
    shaders: &[&SHADER],
    cases,
    timed,
};

const NAME: &str = "factor_scatter";
/// Invocations of a workgroup, by entry.
const WG: u32 = 64;
const WG_SUM: u32 = 256;
const WG_BLOCK: u32 = 16;
/// Columns that a workgroup of `sum` has.
const SUM_COLUMNS: usize = 32;
const PARTS: &[&str] = &[parts::GRID, parts::RANDOM, parts::DROPOUT, parts::SLOTS];

macro_rules! variants {
    ($wg:ident, $shared:literal; $($name:literal: $drop:literal $units:literal,)+) => {
        &[$(Variant {
            name: $name,
            consts: &[("WG", $wg), ("DROP", $drop), ("UNITS", $units)],
            parts: PARTS,
            backends: PORTABLE,
            workgroup_bytes: $shared,
        }),+]
    };
}

params! {
    struct Params {
        factors: u32, units: u32, groups: u32, d: u32, out_rows: u32, stride: u32, first: u32, sides: u32,
        side: u32, scale: f32, s_base: u32, s_step: u32, s_k: u32, s_block: u32, s_pool_rows: u32,
        key0: u32, key1: u32, drop_p: f32, keep: f32,
    }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../../shaders/factor_scatter.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "lists", variants: variants![WG, 0; "lists": 0 0,] },
        Entry {
            name: "sum",
            variants: variants![WG_SUM, 1024; "token": 0 0, "unit": 0 1, "unit dropout": 1 1,],
        },
        Entry {
            name: "block",
            variants: variants![WG_BLOCK, 0; "token": 0 0, "unit": 0 1, "unit dropout": 1 1,],
        },
    ],
};

/// Sorts the choices `idx [L, P, G, K]`, each below `factors`.
fn sort(gpu: &Gpu, idx: &Tensor, factors: usize) -> Result<Lists> {
    let dims = idx.dims();
    let [l, p, g, k] = [dims[0], dims[1], dims[2], dims[3]];
    let make = |n| Tensor::undefined(idx.device(), Shape::new(&[l, p, n])?, DType::U32);
    let lists = Lists { starts: make(factors + 1)?, pairs: make(g * k)? };
    let params = Params {
        factors: factors as u32,
        units: g as u32,
        groups: (l * p) as u32,
        s_k: k as u32,
        ..Params::default()
    };
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
        params: params.bytes(),
        grid: Grid::Linear((l * p * factors).div_ceil(WG as usize)),
        flops: 2 * (idx.len() * factors) as u64,
    })?;
    Ok(lists)
}

/// `(coef [M, slots of all linears], rows [M, D]) -> d_pool [count * factors * block, D]`
pub(crate) struct FactorScatter<'a> {
    pub slots: &'a Slots,
    pub selection: &'a Selection,
    pub scale: f32,
    pub dropout: Option<Dropout>,
    /// What to use on a GPU instead of the chosen entry; only tests set it.
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
    run1(&FactorScatter { slots, selection, scale, dropout, force: None }, In { coef, rows })
}

impl FactorScatter<'_> {
    fn out_rows(&self) -> usize {
        self.slots.count * self.slots.pool_rows
    }
}

operands! {
    pub(crate) struct In { coef, rows }
}

impl Op for FactorScatter<'_> {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, &In { coef, rows }: &In<'_>) -> Result<[Meta; 1]> {
        coef.require(NAME, DType::F32)?;
        rows.require(NAME, DType::F32)?;
        if coef.dims() != [rows.shape().rows(), self.slots.all_columns()]
            || rows.shape().rows() != self.slots.units.rows()
        {
            return Err(Error::shape(
                NAME,
                format!("coefficients of the rows {}", rows.shape()),
                coef.shape(),
            ));
        }
        Ok([Meta::f32(&[self.out_rows(), rows.shape().last()])?])
    }

    fn reference(&self, &In { coef, rows }: &In<'_>, [y]: [&mut Host; 1]) {
        let d = rows.shape().last();
        let view = self.slots.view();
        let stride = self.slots.all_columns();
        let first = self.slots.first_column();
        let coef = coef.f64();
        let rows = rows.f64();
        let y = y.f64_mut();
        y.fill(0.0);
        for m in 0..self.slots.units.rows() {
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

    fn cpu(&self, &In { coef, rows }: &In<'_>, [y]: [&mut Host; 1]) {
        let d = rows.shape().last();
        let coef = coef.f32();
        let rows = rows.f32();
        if self.slots.dense {
            self.dense_sums([coef, rows], d, y.f32_mut())
        } else if self.slots.grouped(self.slots.units.rows()) {
            self.sums_of_groups([coef, rows], d, y.f32_mut())
        } else if self.slots.units.is_tokens() {
            self.sums_of_tokens([coef, rows], d, y.f32_mut())
        } else {
            self.sums_of_units([coef, rows], d, [&mut [], &mut []], &|_, _, _| (), y.f32_mut())
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let (_, sides, g, _) = self.slots.dims();
        let d = x.rows.shape().last();
        let out_rows = self.out_rows();
        let ([key0, key1], drop_p, keep) = Dropout::params(&self.dropout);
        let [s_base, s_step, s_k, s_block, s_pool_rows] = self.slots.params();
        let params = Params {
            factors: self.selection.factors() as u32,
            units: g as u32,
            groups: 0,
            d: d as u32,
            out_rows: out_rows as u32,
            stride: self.slots.all_columns() as u32,
            first: self.slots.first as u32,
            sides: sides as u32,
            side: self.slots.side as u32,
            scale: self.scale,
            s_base,
            s_step,
            s_k,
            s_block,
            s_pool_rows,
            key0,
            key1,
            drop_p,
            keep,
        };
        let units = self.slots.units.start().map(|t| t.buffer());
        let coef = x.coef.buffer();
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
                let lists = self.selection.lists(|idx, factors| sort(gpu, idx, factors))?;
                (
                    WG_SUM,
                    [Bind::Read(lists.starts.buffer()), Bind::Read(lists.pairs.buffer())],
                    Grid::Xyz(d.div_ceil(SUM_COLUMNS), fold, out_rows.div_ceil(fold)),
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
                Bind::Read(x.rows.buffer()),
                first,
                second,
                Bind::or_unused(units, coef),
                Bind::Write(y[0].buffer()),
            ],
            params: params.bytes(),
            grid,
            flops: 2 * (x.rows.len() * self.slots.width()) as u64,
        })
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (entry, tokens) in [("sum", true), ("block", true), ("sum", false), ("block", false)] {
        let inputs =
            vec![Operand::normal("coef", &[33, 8]).frozen(), Operand::normal("rows", &[33, 68]).frozen()];
        let run = move |x: &[Tensor]| {
            let selection = forced_selection(&x[0], tokens)?;
            let slots = selection.slots_a();
            let dropout = forced_dropout(tokens);
            let op = FactorScatter {
                slots: &slots,
                selection: &selection,
                scale: 0.5,
                dropout,
                force: Some(entry),
            };
            Ok(vec![run1(&op, In { coef: &x[0], rows: &x[1] })?])
        };
        all.push(Case::new(format!("{entry}, tokens {tokens}"), inputs, run).sums(33));
    }
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [m, d, e, k] = sizes.pick(sample::SMALL, sample::FULL);
    let inputs = vec![Operand::normal("x", &[m, d]).frozen(), Operand::normal("u", &[m, k]).frozen()];
    let costs = (2 * m * k * d, 4 * (m * d + e * d + m * k));
    let sums = Timed::new(format!("{m}x{d}, {k} of {e}"), inputs, costs, move |device| {
        let s = sample::tokens(device, [m, e, k], None)?;
        Ok(Box::new(move |x| Ok(vec![scatter(&x[1], &x[0], &s.slots_a(), &s, 1.0, None)?])))
    });
    vec![sums.sums(2 * d + m)]
}
