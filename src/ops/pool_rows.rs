//! The pooled routing input: one row per routing unit, by the units' pooling weights.

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::cpu::tile::{Tile, columns_in_parallel};
use crate::engine::{
    Case, Computation, Meta, Op, OpSpec, Operand, Timed, TimedSizes, operands, rows_in_parallel, run1,
};
use crate::routing::Units;
use crate::simd::{add_rows, vectorised};
use crate::tape::Node;
use crate::{DType, Device, Error, Result, Tensor};
use std::sync::Arc;

use crate::engine::launch::{Kernel, binds};

pub(super) static SPEC: OpSpec = OpSpec {
    name: "pool_rows",
    formula: "h[g] = sum over the rows m of unit g of weight[m] x[m]",
    shaders: &[&SHADER],
    cases,
    timed,
};

const NAME: &str = "pool_rows";
/// Invocations of a workgroup, by entry.
const WG_FORWARD: u32 = 256;
const WG_BACKWARD: u32 = 64;
/// Columns that a workgroup of `forward` has.
const COLUMNS: usize = 32;

const fn variant(wg: &'static [(&'static str, u32)], workgroup_bytes: u32) -> Variant {
    Variant { name: "sized", consts: wg, parts: &[parts::GRID], backends: PORTABLE, workgroup_bytes }
}
static FORWARD: [Variant; 1] = [variant(&[("WG", WG_FORWARD)], 1024)];
static BACKWARD: [Variant; 1] = [variant(&[("WG", WG_BACKWARD)], 0)];

params! {
    struct Params { units: u32, rows: u32, d: u32 }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/pool_rows.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "forward", variants: &FORWARD },
        Entry { name: "backward", variants: &BACKWARD },
    ],
};

/// Forward: `x [M, D] -> h [G, D]`; backward: `dh [G, D] -> dx [M, D]`. Not for token units.
struct Pool<'a> {
    units: &'a Units,
    backward: bool,
}

vectorised! {
    /// Columns of the pooled rows.
    fn sums(simd: _, units: &Units, weight: &[f32], x: &[f32], d: usize, tile: &mut Tile<'_>) {
        let cols = tile.cols();
        let mut weights = Vec::new();
        let mut rows = Vec::new();
        for g in tile.rows() {
            let y = tile.row(g);
            y.fill(0.0);
            // What is padding may hold anything.
            for m in units.range(g).filter(|&m| weight[m] != 0.0) {
                weights.push(weight[m]);
                rows.push(&x[m * d..][cols.clone()]);
            }
            add_rows(simd, y, &weights, &rows);
            weights.clear();
            rows.clear();
        }
    }
}

operands! {
    struct In { x }
}

impl Op for Pool<'_> {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, &In { x }: &In<'_>) -> Result<[Meta; 1]> {
        x.require(NAME, DType::F32)?;
        let mut from = self.units.rows();
        let mut to = self.units.count();
        if self.backward {
            std::mem::swap(&mut from, &mut to);
        }
        if x.shape().rows() != from {
            return Err(Error::shape(NAME, format!("rows for {:?}", self.units), x.shape()));
        }
        Ok([Meta::f32(&[to, x.shape().last()])?])
    }

    fn reference(&self, &In { x }: &In<'_>, [y]: [&mut Host; 1]) {
        let d = x.shape().last().max(1);
        let x = x.f64();
        let y = y.f64_mut();
        let weight = self.units.weight().map_or(&[][..], |w| w.f64());
        if !self.backward {
            y.fill(0.0);
        }
        for g in 0..self.units.count() {
            for m in self.units.range(g) {
                for c in 0..x.len().min(d) {
                    if self.backward {
                        y[m * d + c] = weight[m] * x[g * d + c]
                    } else {
                        y[g * d + c] += weight[m] * x[m * d + c]
                    }
                }
            }
        }
    }

    fn cpu(&self, &In { x }: &In<'_>, [y]: [&mut Host; 1]) {
        let d = x.shape().last();
        let x = x.f32();
        let (Some(weight), Some(row_unit)) = (self.units.weight(), self.units.row_unit()) else { return };
        let weight = weight.f32();
        let row_unit = row_unit.u32();
        if self.backward {
            rows_in_parallel(y.f32_mut(), d, |m, y| {
                let from = &x[row_unit[m] as usize * d..][..d];
                y.iter_mut().zip(from).for_each(|(y, v)| *y = weight[m] * v);
            })
        } else {
            columns_in_parallel(y.f32_mut(), d, |tile| sums(self.units, weight, x, d, tile))
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let (Some(weight), Some(start), Some(row_unit)) =
            (self.units.weight(), self.units.start(), self.units.row_unit())
        else {
            return Ok(());
        };
        let rows = self.units.rows();
        let d = x.x.shape().last();
        let params = Params { units: self.units.count() as u32, rows: rows as u32, d: d as u32 };
        let (kernel, map, groups) = if self.backward {
            let kernel = Kernel { shader: &SHADER, entry: "backward", variant: &BACKWARD[0] };
            (kernel, row_unit, y[0].len().div_ceil(WG_BACKWARD as usize))
        } else {
            let kernel = Kernel { shader: &SHADER, entry: "forward", variant: &FORWARD[0] };
            (kernel, start, self.units.count() * d.div_ceil(COLUMNS))
        };
        kernel.run(gpu, &binds(&[x.x, weight, map], y), &params, groups, 2 * rows * d)
    }
}

impl Tensor {
    /// The pooled routing input of every unit: `h[g] = sum over its rows m of weight[m] x[m]`, `[G, D]`.
    ///
    /// For token units this is `x` itself, as rows.
    ///
    /// # Errors
    /// The rows of `x` are not those of the units.
    pub fn pool_rows(&self, units: &Units) -> Result<Tensor> {
        let d = self.shape().last();
        if units.is_tokens() {
            return self.reshape(&[units.rows(), d]);
        }
        let h = run1(&Pool { units, backward: false }, In { x: self })?;
        let units = units.clone();
        let dims = self.dims().to_vec();
        Ok(Node::record(NAME, &[self], h, move |dh| {
            let dx = run1(&Pool { units: &units, backward: true }, In { x: &dh })?;
            Ok(vec![Some(dx.reshape(&dims)?)])
        }))
    }
}

fn cases() -> Vec<Case> {
    let shapes: [(&[usize], usize); 5] =
        [(&[0, 1], 1), (&[0, 3, 3, 8], 5), (&[0, 130], 66), (&[0], 4), (&[0, 30_000, 66_000], 2)];
    shapes
        .into_iter()
        .map(|(start, d)| {
            let rows = start[start.len() - 1];
            let weight: Vec<f32> =
                (0..rows).map(|m| if m % 4 == 3 { 0.0 } else { 1.0 / (m % 7 + 1) as f32 }).collect();
            Case::new(format!("{start:?} d {d}"), vec![Operand::normal("x", &[rows, d])], move |x| {
                Ok(vec![x[0].pool_rows(&Units::ranges(x[0].device(), start, &weight)?)?])
            })
            .sums(rows)
            .cost(2 * rows * d, 4 * rows * d)
        })
        .collect()
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [r, d] = sizes.pick([40, 257], [2048, 2048]);
    let make = move |device: &Device| -> Result<Computation> {
        let units = Units::instances(device, 8, r / 8)?;
        Ok(Box::new(move |x| Ok(vec![x[0].pool_rows(&units)?])))
    };
    let inputs = vec![Operand::normal("x", &[r, d])];
    let pool = Timed::new(format!("8 units of {r}x{d}"), inputs, (2 * r * d, 4 * r * d), make);
    vec![pool.sums(r).backward(r * d, 4 * r * d)]
}
