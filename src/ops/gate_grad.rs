//! Gradient of gates: `dg[i,k] = sum over the rows m of unit i of u[m,k] v[m,k]`.

use crate::device::{Entry, Host, PORTABLE, Shader, Variant, parts};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, run};
use crate::routing::{Selection, Units};
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;

#[cfg(feature = "gpu")]
use crate::device::Bind;
#[cfg(feature = "gpu")]
use crate::engine::launch::{Kernel, binds};

pub(super) static SPEC: OpSpec = OpSpec {
    name: "gate_grad",
    formula: "dg[i,k] = sum over the rows of unit i of u v",
    shaders: &[&SHADER],
    cases,
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
static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/gate_grad.wgsl"),
    entries: &[Entry { name: "unit", variants: VARIANTS }, Entry { name: "token", variants: VARIANTS }],
};

/// `(u, v) [M, slots of all linears] -> dg [L, G, K]`
pub(crate) struct GateGrad<'a>(pub &'a Selection);

impl GateGrad<'_> {
    /// For every gate: its unit, and the column of its first slot.
    fn place(&self, item: usize) -> (usize, usize) {
        let (_, _, g, k) = self.0.slots_a().dims();
        let (l, unit, choice) = (item / (g * k), item / k % g, item % k);
        (unit, (l * k + choice) * self.block())
    }
    fn block(&self) -> usize {
        let s = self.0.slots_a();
        s.block
    }
}

impl Op for GateGrad<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        let slots = self.0.slots_a();
        let want = [self.0.units().rows(), slots.all_columns()];
        for t in x {
            t.expect(NAME, DType::F32)?;
            if t.dims() != want {
                return Err(Error::shape(NAME, format!("{} instead of {want:?}", t.shape())));
            }
        }
        let (l, _, g, k) = slots.dims();
        Ok(vec![Meta::f32(&[l, g, k])?])
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let (stride, block) = (x[0].shape().last(), self.block());
        for (i, y) in y[0].f64_mut().iter_mut().enumerate() {
            let (unit, column) = self.place(i);
            let at = |m| m * stride + column..m * stride + column + block;
            let rows = self.0.units().range(unit);
            *y = rows.flat_map(at).map(|j| x[0].f64()[j] * x[1].f64()[j]).sum();
        }
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        let (stride, block, units) = (x[0].shape().last(), self.block(), self.0.units());
        let (u, v) = (x[0].f32(), x[1].f32());
        let (_, _, g, k) = self.0.slots_a().dims();
        // The gates of a unit, for one linear.
        let gates = |i: usize, y: &mut [f32]| {
            let (column, width) = (i / g * k * block, k * block);
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
        let parts = y[0].f32_mut().par_chunks_mut(k.max(1)).with_min_len(UNITS);
        parts.enumerate().for_each(|(i, y)| gates(i, y));
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        let (l, _, g, k) = self.0.slots_a().dims();
        let start = self.0.units().start();
        let items = l * g * k;
        let (entry, groups) = match start {
            Some(_) => ("unit", items),
            None => ("token", items.div_ceil(WG as usize)),
        };
        let mut bind = binds(x, y);
        bind.insert(2, Bind::or_unused(start.map(|t| t.buffer()), x[0].buffer()));
        let params = [l, g, k, self.block()].map(|v| v as u32);
        let kernel = Kernel { shader: &SHADER, entry, variant: &VARIANTS[0] };
        kernel.run(gpu, &bind, &params, groups, 2 * x[0].len())
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
            run(&GateGrad(&selection), &[&x[0], &x[1]])
        };
        Case::new(label, inputs.to_vec(), run).sums(ROWS * block).cost(2 * ROWS * columns, 8 * ROWS * columns)
    };
    setups.into_iter().map(case).collect()
}
