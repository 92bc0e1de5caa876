//! Sums over everything, over rows, and over the innermost axis.

use crate::device::{Entry, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Timed, TimedSizes, operands, run1};
use crate::tape::Node;
use crate::{DType, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

use crate::device::{Bind, Gpu, GpuBuffer};
use crate::engine::launch::Kernel;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "reduce",
    formula: "sum of all, sum over rows, sum over the last axis",
    shaders: &[&SHADER],
    cases,
    timed,
};

const WG: u32 = 256;
/// Elements that one workgroup of `total` sums.
const CHUNK: usize = 4096;
/// Rows that one invocation of `rows` sums.
const ROWS: usize = 256;
static VARIANTS: &[Variant] = &[Variant {
    name: "wg256",
    consts: &[("WG", WG)],
    parts: &[parts::GRID, parts::SUM],
    backends: PORTABLE,
    workgroup_bytes: 4 * WG,
}];

params! {
    struct Params { n: u32, d: u32 }
}

static SHADER: Shader = Shader {
    name: "reduce",
    source: include_str!("../../shaders/reduce.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "total", variants: VARIANTS },
        Entry { name: "rows", variants: VARIANTS },
        Entry { name: "last", variants: VARIANTS },
    ],
};

#[derive(Debug, Clone, Copy)]
enum Sum {
    /// `[..] -> []`
    Total,
    /// `[N, D] -> [D]`
    Rows,
    /// `[.., D] -> [..]`
    Last,
}

operands! {
    struct In { x }
}

impl Op for Sum {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        "reduce"
    }

    fn infer(&self, &In { x }: &In<'_>) -> Result<[Meta; 1]> {
        x.require(self.name(), DType::F32)?;
        let dims = x.dims();
        Ok([match self {
            Sum::Total => Meta::f32(&[])?,
            Sum::Rows => Meta::f32(&[x.shape().last()])?,
            Sum::Last => Meta::f32(&dims[..dims.len().saturating_sub(1)])?,
        }])
    }

    fn reference(&self, &In { x }: &In<'_>, [y]: [&mut Host; 1]) {
        let d = x.shape().last();
        let x = x.f64();
        let y = y.f64_mut();
        match self {
            Sum::Total => y[0] = x.iter().sum(),
            Sum::Rows => {
                y.fill(0.0);
                x.chunks(d.max(1)).for_each(|row| y.iter_mut().zip(row).for_each(|(y, v)| *y += v));
            }
            Sum::Last if d == 0 => y.fill(0.0),
            Sum::Last => y.iter_mut().zip(x.chunks(d)).for_each(|(y, row)| *y = row.iter().sum()),
        }
    }

    fn cpu(&self, &In { x }: &In<'_>, [y]: [&mut Host; 1]) {
        let d = x.shape().last();
        let x = x.f32();
        let y = y.f32_mut();
        let sum = |v: &[f32]| v.iter().map(|&v| v as f64).sum::<f64>();
        match self {
            Sum::Total => {
                let partial: Vec<f64> = x.par_chunks(1 << 16).map(sum).collect();
                y[0] = partial.iter().sum::<f64>() as f32;
            }
            Sum::Rows => column_sums(x, d, y),
            Sum::Last if d == 0 => y.fill(0.0),
            Sum::Last => y.par_iter_mut().zip(x.par_chunks(d)).for_each(|(y, row)| *y = sum(row) as f32),
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let n = x.x.shape().rows();
        let d = x.x.shape().last();
        match self {
            Sum::Total => passes(gpu, "total", x.x, &y[0], [x.x.len(), 1], CHUNK),
            Sum::Rows => passes(gpu, "rows", x.x, &y[0], [n, d], ROWS),
            Sum::Last => launch(gpu, "last", [x.x.buffer(), y[0].buffer()], [n, d], n),
        }
    }
}

/// Blocks of rows and of columns in parallel, rows of a block in order, then the blocks in order.
fn column_sums(x: &[f32], d: usize, y: &mut [f32]) {
    const ROWS: usize = 1024;
    const COLUMNS: usize = 1024;
    if d == 0 {
        return;
    }
    let mut partial = vec![0f64; x.len().div_ceil(ROWS * d) * d];
    partial.par_chunks_mut(d).zip(x.par_chunks(ROWS * d)).for_each(|(sums, x)| {
        sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(c, sums)| {
            for row in x.chunks(d) {
                sums.iter_mut().zip(&row[c * COLUMNS..]).for_each(|(sum, &v)| *sum += v as f64);
            }
        });
    });
    y.par_iter_mut().enumerate().for_each(|(c, y)| {
        *y = partial[c.min(partial.len())..].iter().step_by(d).sum::<f64>() as f32;
    });
}

fn launch(
    gpu: &Gpu,
    entry: &'static str,
    [x, y]: [&GpuBuffer; 2],
    [n, d]: [usize; 2],
    groups: usize,
) -> Result<()> {
    let kernel = Kernel { shader: &SHADER, entry, variant: &VARIANTS[0] };
    kernel.run(gpu, &[Bind::Read(x), Bind::Write(y)], &Params { n: n as u32, d: d as u32 }, groups, n * d)
}

/// Sums `x [N, D]` to `[ceil(N / per), D]`, and that again, until one row is left.
fn passes(
    gpu: &Arc<Gpu>,
    entry: &'static str,
    x: &Tensor,
    y: &Tensor,
    [mut n, d]: [usize; 2],
    per: usize,
) -> Result<()> {
    let groups = |blocks: usize| if entry == "rows" { (blocks * d).div_ceil(WG as usize) } else { blocks };
    let mut partial: Option<GpuBuffer> = None;
    while n > per {
        let blocks = n.div_ceil(per);
        let next = gpu.alloc(blocks * d)?;
        launch(gpu, entry, [partial.as_ref().unwrap_or(x.buffer()), &next], [n, d], groups(blocks))?;
        (partial, n) = (Some(next), blocks);
    }
    launch(gpu, entry, [partial.as_ref().unwrap_or(x.buffer()), y.buffer()], [n, d], groups(1))
}

impl Tensor {
    /// Sum of all elements, a scalar.
    pub fn sum(&self) -> Result<Tensor> {
        let y = run1(&Sum::Total, In { x: self })?;
        let dims = self.dims().to_vec();
        Ok(Node::record("sum", &[self], y, move |dy| Ok(vec![Some(dy.repeat_to(&dims, 1)?)])))
    }

    /// Mean of all elements, a scalar.
    pub fn mean(&self) -> Result<Tensor> {
        self.sum()?.scale(1.0 / self.len().max(1) as f32)
    }

    /// Sum over all axes but the last: `[.., D] -> [D]`.
    pub fn sum_rows(&self) -> Result<Tensor> {
        let y = run1(&Sum::Rows, In { x: self })?;
        let dims = self.dims().to_vec();
        Ok(Node::record("sum_rows", &[self], y, move |dy| Ok(vec![Some(dy.repeat_to(&dims, 1)?)])))
    }

    /// Sum over the last axis: `[.., D] -> [..]`.
    pub fn sum_last(&self) -> Result<Tensor> {
        let y = run1(&Sum::Last, In { x: self })?;
        let dims = self.dims().to_vec();
        Ok(Node::record("sum_last", &[self], y, move |dy| {
            Ok(vec![Some(dy.repeat_to(&dims, dims.last().copied().unwrap_or(1))?)])
        }))
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dims in [&[0, 3][..], &[1], &[4, 7], &[3, 2, 257], &[70_000, 2], &[70_000, 1], &[5, 9001], &[2, 0]] {
        let n: usize = dims.iter().product();
        let x = || vec![Operand::normal("x", dims)];
        let d = dims[dims.len() - 1];
        let cost = (n, 4 * n);
        all.push(
            Case::new(format!("sum {dims:?}"), x(), |x| Ok(vec![x[0].sum()?])).sums(n).cost(cost.0, cost.1),
        );
        all.push(
            Case::new(format!("sum_rows {dims:?}"), x(), |x| Ok(vec![x[0].sum_rows()?]))
                .sums(n / d.max(1))
                .cost(cost.0, cost.1),
        );
        all.push(
            Case::new(format!("sum_last {dims:?}"), x(), |x| Ok(vec![x[0].sum_last()?]))
                .sums(d)
                .cost(cost.0, cost.1),
        );
    }
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, d] = sizes.plane();
    let n = rows * d;
    let inputs = vec![Operand::normal("x", &[rows, d])];
    vec![Timed::plain(format!("sum_last {rows}x{d}"), inputs, (n, 4 * n), |x| x[0].sum_last()).sums(d)]
}
