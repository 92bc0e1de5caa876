//! Gradients of factor pools: choices are sorted by factor once, then each factor sums its segment of rows in
//! order. No atomics: two runs give the same bits.

use super::slots::{Dropout, Slots};
use super::tile::{Tile, columns_in_parallel};
use super::{Meta, Op, OpSpec, run};
use crate::device::{Entry, Host, PORTABLE, Shader, Variant, parts};
use crate::simd::{add_rows, vectorised};
use crate::{DType, Error, Result, Tensor};

pub(super) static SPEC: OpSpec = OpSpec {
    name: "factor_scatter",
    formula: "d_pool[f] = s sum over choices of f of coef x",
    shaders: &[&SHADER],
    cases: super::mixture_linears::scatter_cases,
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

/// Choices sorted by factor, for every linear and side of a selection.
#[derive(Debug, Clone)]
pub(crate) struct Lists {
    /// Factors that there are to choose from.
    pub factors: usize,
    /// `[L, P, E+1]`
    starts: Tensor,
    /// `[L, P, G*K]`: unit * K + choice, ascending within a factor.
    pairs: Tensor,
}

impl Lists {
    /// Sorts the choices `idx [L, P, G, K]`, each below `factors`.
    pub fn new(idx: &Tensor, factors: usize) -> Result<Self> {
        let mut out = run(&Sort { factors }, &[idx])?;
        let pairs = out.swap_remove(1);
        Ok(Lists { factors, starts: out.swap_remove(0), pairs })
    }
}

/// `idx -> (starts, pairs)`
struct Sort {
    factors: usize,
}

impl Op for Sort {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        x[0].expect(NAME, DType::U32)?;
        match *x[0].dims() {
            [l, p, g, k] => Ok(vec![Meta::u32(&[l, p, self.factors + 1])?, Meta::u32(&[l, p, g * k])?]),
            _ => Err(Error::shape(NAME, format!("choices {} are not [L, P, G, K]", x[0].shape()))),
        }
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let n = x[0].dims()[2] * x[0].dims()[3];
        let [starts, pairs] = y else { unreachable!() };
        let groups = starts.u32_mut().chunks_mut(self.factors + 1).enumerate();
        for (group, starts) in groups {
            let idx = &x[0].u32()[group * n..(group + 1) * n];
            let pairs = &mut pairs.u32_mut()[group * n..(group + 1) * n];
            starts.fill(0);
            idx.iter().for_each(|&e| starts[e as usize + 1] += 1);
            (0..self.factors).for_each(|e| starts[e + 1] += starts[e]);
            let mut next = starts.to_vec();
            for (i, &e) in idx.iter().enumerate() {
                pairs[next[e as usize] as usize] = i as u32;
                next[e as usize] += 1;
            }
        }
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        self.reference(x, y);
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        use crate::device::{Bind, Dispatch, Grid};
        let (d, groups) = (x[0].dims(), x[0].dims()[0] * x[0].dims()[1]);
        let mut params: Params = bytemuck::Zeroable::zeroed();
        params.choices = [self.factors, d[2], groups].map(|v| v as u32);
        params.slots[2] = d[3] as u32;
        gpu.dispatch(Dispatch {
            shader: &SHADER,
            entry: "lists",
            consts: &[("WG", WG), ("DROP", 0), ("UNITS", 0)],
            parts: PARTS,
            bind: &[Bind::Write(y[0].buffer()), Bind::Write(y[1].buffer()), Bind::Read(x[0].buffer())],
            params: bytemuck::bytes_of(&params),
            grid: Grid::Linear((groups * self.factors).div_ceil(WG as usize)),
            flops: 2 * (x[0].len() * self.factors) as u64,
        })
    }
}

/// `(coef [M, slots of all linears], rows [M, D]) -> d_pool [count * factors * block, D]`
pub(crate) struct FactorScatter<'a> {
    pub slots: &'a Slots,
    pub lists: &'a Lists,
    pub scale: f32,
    pub dropout: Option<Dropout>,
}

/// Sums `scale * coef[m,j] * rows[m]` into the pool rows that the slots chose.
pub(crate) fn scatter(
    coef: &Tensor,
    rows: &Tensor,
    slots: &Slots,
    lists: &Lists,
    scale: f32,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    Ok(run(&FactorScatter { slots, lists, scale, dropout }, &[coef, rows])?.swap_remove(0))
}

impl FactorScatter<'_> {
    /// Calls `f(row, coefficient)` for every row that pool row `o` serves, in order.
    fn segment(&self, o: usize, mut f: impl FnMut(usize, usize)) {
        let (_, sides, g, k) = self.slots.dims();
        let (e, block) = (self.lists.factors, self.slots.block);
        let linear = self.slots.first + o / (e * block);
        let (factor, q) = (o % (e * block) / block, o % block);
        let group = linear * sides + self.slots.side;
        let starts = &self.lists.starts.u32()[group * (e + 1) + factor..];
        for i in starts[0]..starts[1] {
            let pair = self.lists.pairs.u32()[group * g * k + i as usize] as usize;
            let column = linear * k * block + pair % k * block + q;
            for m in self.slots.units.range(pair / k) {
                f(m, m * self.slots.all_columns() + column);
            }
        }
    }
    fn out_rows(&self) -> usize {
        self.slots.count * self.lists.factors * self.slots.block
    }
}

/// Rows that are added to a factor at once.
const GROUP: usize = 8;

vectorised! {
    /// Columns of all factors: rows in order, and to all factors of a row while it is in the cache.
    fn sums(op: &FactorScatter<'_>, coef: &[f32], rows: &[f32], d: usize, tile: &mut Tile<'_>) {
        let (view, width) = (op.slots.view(), op.slots.width());
        let (stride, first) = (op.slots.all_columns(), op.slots.first_column());
        let (cols, n) = (tile.cols.clone(), tile.cols.len());
        tile.rows.clone().for_each(|i| tile.row(i).fill(0.0));
        let mut dropped = vec![0f32; if op.dropout.is_some() { GROUP * n } else { 0 }];
        for unit in 0..op.slots.units.count() {
            let range = op.slots.units.range(unit);
            for m0 in range.clone().step_by(GROUP) {
                let count = GROUP.min(range.end - m0);
                let mut group: [&[f32]; GROUP] = [&[]; GROUP];
                for (i, row) in group.iter_mut().enumerate().take(count) {
                    *row = &rows[(m0 + i) * d..][cols.clone()];
                }
                if let Some(p) = op.dropout {
                    for (i, out) in dropped.chunks_mut(n).enumerate().take(count) {
                        let at = (m0 + i) * d + cols.start;
                        let kept = out.iter_mut().zip(group[i]).enumerate();
                        kept.for_each(|(c, (o, v))| *o = p.factor(at + c) * v);
                    }
                    group.iter_mut().zip(dropped.chunks(n)).take(count).for_each(|(row, kept)| *row = kept);
                }
                for j in 0..width {
                    let mut c = [0f32; GROUP];
                    for (i, c) in c.iter_mut().enumerate().take(count) {
                        *c = op.scale * coef[(m0 + i) * stride + first + j];
                    }
                    add_rows::<FMA>(tile.row(view.pick(m0, j)), &c[..count], &group[..count]);
                }
            }
        }
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
        let d = x[1].shape().last();
        for (o, y) in y[0].f64_mut().chunks_mut(d.max(1)).enumerate() {
            y.fill(0.0);
            self.segment(o, |m, c| {
                for (i, y) in y.iter_mut().enumerate() {
                    let keep = self.dropout.map_or(1.0, |p| p.factor(m * d + i) as f64);
                    *y += self.scale as f64 * x[0].f64()[c] * keep * x[1].f64()[m * d + i];
                }
            });
        }
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        let (d, coef, rows) = (x[1].shape().last(), x[0].f32(), x[1].f32());
        columns_in_parallel(y[0].f32_mut(), d, |tile| sums(self, coef, rows, d, tile));
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        use crate::device::{AdapterClass, Bind, Dispatch, Grid};
        let (_, sides, g, _) = self.slots.dims();
        let (d, out_rows) = (x[1].shape().last(), self.out_rows());
        let (key, drop_p, keep) = Dropout::params(&self.dropout);
        let sizes = [d, out_rows, self.slots.all_columns(), self.slots.first, sides, self.slots.side];
        let [base, step, k, block, _] = self.slots.params();
        let params = Params {
            choices: [self.lists.factors, g, 0].map(|v| v as u32),
            sizes: sizes.map(|v| v as u32),
            scale: self.scale,
            slots: [base, step, k, block, self.lists.factors as u32 * block],
            key,
            drop_p,
            keep,
        };
        let units = self.slots.units.start().map(|t| t.buffer());
        let coef = x[0].buffer();
        // A few processors want few loads; a GPU wants many invocations.
        let whole = d.is_multiple_of(4) && self.slots.per_linear().is_multiple_of(4);
        let fold = out_rows.clamp(1, 65_535);
        let (entry, wg, choices, grid) = match gpu.class() == AdapterClass::Software && whole {
            true => (
                "block",
                WG_BLOCK,
                [Bind::Read(self.slots.idx.buffer()), Bind::Unused(coef)],
                Grid::Linear((d / 4 * self.slots.count).div_ceil(WG_BLOCK as usize)),
            ),
            false => (
                "sum",
                WG,
                [Bind::Read(self.lists.starts.buffer()), Bind::Read(self.lists.pairs.buffer())],
                Grid::Xyz(d.div_ceil(WG as usize), fold, out_rows.div_ceil(fold)),
            ),
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
