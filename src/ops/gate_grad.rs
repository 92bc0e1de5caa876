//! Gradient of gates: `dg[i,k] = sum over the rows m of unit i of u[m,k] v[m,k]`.

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Operands, Timed, TimedSizes, operands, run1};
use crate::routing::{Selection, Units, sample};
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

use crate::device::Bind;
use crate::engine::launch::{Kernel, binds};

pub(super) static SPEC: OpSpec = OpSpec {
    name: "gate_grad",
    formula: "dg[i,k] = sum over the rows of unit i of u v",
    shaders: &[&SHADER],
    cases,
    timed,
};

const NAME: &str = "gate_grad";
const WG: u32 = 64;
/// Units of a task at least, where they are many.
const UNITS: usize = 64;
static VARIANTS: &[Variant] = &[Variant {
    name: "wg64",
    consts: &[("WG", WG)],
    parts: &[parts::GRID, parts::SUM],
    backends: PORTABLE,
    workgroup_bytes: 4 * WG,
}];

params! {
    struct Params { linears: u32, units: u32, k: u32, block: u32 }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/gate_grad.wgsl"),
    params: Params::FIELDS,
    entries: &[Entry { name: "unit", variants: VARIANTS }, Entry { name: "token", variants: VARIANTS }],
};

/// `(u, v) [M, slots of all linears] -> dg [L, G, K]`
struct GateGrad<'a>(&'a Selection);

/// Gradients of the gates `[L, G, K]` of a selection, from the products `u` and `v` `[M, slots of all linears]`.
pub(crate) fn gate_grad(u: &Tensor, v: &Tensor, selection: &Selection) -> Result<Tensor> {
    run1(&GateGrad(selection), In { u, v })
}

impl GateGrad<'_> {
    /// For every gate: its unit, and the column of its first slot.
    fn place(&self, item: usize) -> (usize, usize) {
        let (_, _, g, k) = self.0.slots_a().dims();
        let l = item / (g * k);
        let unit = item / k % g;
        let choice = item % k;
        (unit, (l * k + choice) * self.block())
    }
    fn block(&self) -> usize {
        let s = self.0.slots_a();
        s.block
    }
}

operands! {
    struct In { u, v }
}

impl Op for GateGrad<'_> {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &In<'_>) -> Result<[Meta; 1]> {
        x.require(NAME, DType::F32)?;
        let slots = self.0.slots_a();
        let want = [self.0.units().rows(), slots.all_columns()];
        if let Some(t) = x.all().iter().find(|t| t.dims() != want) {
            return Err(Error::shape(NAME, format!("{want:?}"), t.shape()));
        }
        let (l, _, g, k) = slots.dims();
        Ok([Meta::f32(&[l, g, k])?])
    }

    fn reference(&self, &In { u, v }: &In<'_>, [y]: [&mut Host; 1]) {
        let stride = u.shape().last();
        let block = self.block();
        for (i, y) in y.f64_mut().iter_mut().enumerate() {
            let (unit, column) = self.place(i);
            let at = |m| m * stride + column..m * stride + column + block;
            let rows = self.0.units().range(unit);
            *y = rows.flat_map(at).map(|j| u.f64()[j] * v.f64()[j]).sum();
        }
    }

    fn cpu(&self, &In { u, v }: &In<'_>, [y]: [&mut Host; 1]) {
        let stride = u.shape().last();
        let block = self.block();
        let units = self.0.units();
        let u = u.f32();
        let v = v.f32();
        let (_, _, g, k) = self.0.slots_a().dims();
        // The gates of a unit, for one linear.
        let gates = |i: usize, y: &mut [f32]| {
            let column = i / g * k * block;
            let width = k * block;
            let mut sums = vec![0f64; k];
            for m in units.range(i % g) {
                let at = m * stride + column;
                let blocks = u[at..at + width].chunks(block).zip(v[at..at + width].chunks(block));
                for (sum, (u, v)) in sums.iter_mut().zip(blocks) {
                    *sum += u.iter().zip(v).map(|(u, v)| (u * v) as f64).sum::<f64>();
                }
            }
            y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum as f32);
        };
        let parts = y.f32_mut().par_chunks_mut(k.max(1)).with_min_len(UNITS);
        parts.enumerate().for_each(|(i, y)| gates(i, y));
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let (l, _, g, k) = self.0.slots_a().dims();
        let start = self.0.units().start();
        let items = l * g * k;
        let (entry, groups) = match start {
            Some(_) => ("unit", items),
            None => ("token", items.div_ceil(WG as usize)),
        };
        let mut bind = binds(x, y);
        bind.insert(2, Bind::or_unused(start.map(|t| t.buffer()), x.u.buffer()));
        let params = Params { linears: l as u32, units: g as u32, k: k as u32, block: self.block() as u32 };
        let kernel = Kernel { shader: &SHADER, entry, variant: &VARIANTS[0] };
        kernel.run(gpu, &bind, &params, groups, 2 * x.u.len())
    }
}

/// Row ranges of the units (none: tokens), choices and block of a case.
type Setup = (&'static str, Option<&'static [usize]>, usize, usize);

fn cases() -> Vec<Case> {
    const ROWS: usize = 33;
    let setups: [Setup; 5] = [
        ("tokens", None, 4, 1),
        ("units", Some(&[0, 10, 10, 33]), 4, 1),
        ("token blocks", None, 2, 3),
        ("unit blocks", Some(&[0, 1, 33]), 2, 3),
        ("one unit", Some(&[0, 33]), 1, 1),
    ];
    let case = |(label, starts, k, block): Setup| {
        let columns = 2 * k * block;
        let inputs = ["u", "v"].map(|name| Operand::normal(name, &[ROWS, columns]).frozen());
        let run = move |x: &[Tensor]| {
            let device = x[0].device();
            let units = match starts {
                Some(starts) => Units::ranges(device, starts, &[0.1; ROWS])?,
                None => Units::tokens(ROWS),
            };
            let dims = [2, 1, units.count(), k];
            let idx: Vec<u32> = (0..dims.iter().product()).map(|i| (i % k) as u32).collect();
            let selection = Selection::new(Tensor::from_u32(device, &dims, &idx)?, None, &units, k, block)?;
            Ok(vec![gate_grad(&x[0], &x[1], &selection)?])
        };
        Case::new(label, inputs.to_vec(), run).sums(ROWS * block).cost(2 * ROWS * columns, 8 * ROWS * columns)
    };
    setups.into_iter().map(case).collect()
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [m, d, e, k] = sizes.pick(sample::SMALL, sample::FULL);
    let inputs = ["u", "v"].map(|name| Operand::normal(name, &[m, k]).frozen()).into();
    let costs = (m * k, 12 * m * k);
    let grad = Timed::new(format!("{m}x{d}, {k} of {e}"), inputs, costs, move |device| {
        let s = sample::tokens(device, [m, e, k], None)?;
        Ok(Box::new(move |x| Ok(vec![gate_grad(&x[0], &x[1], &s)?])))
    });
    vec![grad.sums(2 * d + m)]
}
