//! Sums over everything, over rows, and over the innermost axis.

use super::{Case, Meta, Op, OpSpec, Operand, run};
use crate::device::{Entry, Host, PORTABLE, Shader, Variant, parts};
use crate::tape::Node;
use crate::{DType, Result, Tensor};
use rayon::prelude::*;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "reduce",
    formula: "sum of all, sum over rows, sum over the last axis",
    shaders: &[&SHADER],
    cases,
};

const WG: u32 = 256;
/// Elements that one workgroup of `total` sums.
const CHUNK: usize = 4096;
static VARIANTS: &[Variant] = &[Variant {
    name: "wg256",
    consts: &[("WG", WG)],
    parts: &[parts::GRID, parts::SUM],
    backends: PORTABLE,
    workgroup_bytes: 4 * WG,
}];
static SHADER: Shader = Shader {
    name: "reduce",
    source: include_str!("../../shaders/reduce.wgsl"),
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

impl Op for Sum {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        x[0].expect(self.name(), DType::F32)?;
        let dims = x[0].dims();
        Ok(vec![match self {
            Sum::Total => Meta::f32(&[])?,
            Sum::Rows => Meta::f32(&[x[0].shape().last()])?,
            Sum::Last => Meta::f32(&dims[..dims.len().saturating_sub(1)])?,
        }])
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let (d, x, y) = (x[0].shape().last(), x[0].f64(), y[0].f64_mut());
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

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        let (d, x, y) = (x[0].shape().last(), x[0].f32(), y[0].f32_mut());
        let sum = |v: &[f32]| v.iter().map(|&v| v as f64).sum::<f64>();
        match self {
            Sum::Total => {
                let partial: Vec<f64> = x.par_chunks(1 << 16).map(sum).collect();
                y[0] = partial.iter().sum::<f64>() as f32;
            }
            // Column blocks in parallel, rows in order.
            Sum::Rows => y.par_chunks_mut(64).enumerate().for_each(|(c, y)| {
                let mut acc = [0f64; 64];
                for row in x.chunks(d) {
                    acc.iter_mut().zip(&row[c * 64..][..y.len()]).for_each(|(a, &v)| *a += v as f64);
                }
                y.iter_mut().zip(acc).for_each(|(y, a)| *y = a as f32);
            }),
            Sum::Last if d == 0 => y.fill(0.0),
            Sum::Last => y.par_iter_mut().zip(x.par_chunks(d)).for_each(|(y, row)| *y = sum(row) as f32),
        }
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        use crate::device::{Bind, Dispatch, GpuBuffer, Grid};
        let launch = |entry, src: &GpuBuffer, dst: &GpuBuffer, n: usize, d: usize, groups| {
            gpu.dispatch(Dispatch {
                shader: &SHADER,
                entry,
                consts: VARIANTS[0].consts,
                parts: VARIANTS[0].parts,
                bind: &[Bind::Read(src), Bind::Write(dst)],
                params: bytemuck::bytes_of(&[n as u32, d as u32]),
                grid: Grid::Linear(groups),
                flops: (n * d) as u64,
            })
        };
        let (n, d) = (x[0].shape().rows(), x[0].shape().last());
        let out = y[0].buffer();
        match self {
            Sum::Rows => launch("rows", x[0].buffer(), out, n, d, d.div_ceil(WG as usize)),
            Sum::Last => launch("last", x[0].buffer(), out, n, d, n),
            Sum::Total => {
                let mut len = x[0].len();
                let mut src: Option<GpuBuffer> = None;
                loop {
                    let groups = len.div_ceil(CHUNK);
                    let from = src.as_ref().unwrap_or(x[0].buffer());
                    if groups <= 1 {
                        return match len {
                            0 => gpu.clear(out),
                            _ => launch("total", from, out, len, 1, 1),
                        };
                    }
                    let partial = gpu.alloc(groups)?;
                    launch("total", from, &partial, len, 1, groups)?;
                    (src, len) = (Some(partial), groups);
                }
            }
        }
    }
}

impl Tensor {
    /// Sum of all elements, a scalar.
    pub fn sum(&self) -> Result<Tensor> {
        let y = run(&Sum::Total, &[self])?.swap_remove(0);
        let dims = self.dims().to_vec();
        Ok(Node::record("sum", &[self], y, move |dy| {
            let zeros = Tensor::zeros(dy.device(), &[dims.iter().product(), 1])?;
            Ok(vec![Some(zeros.add(&dy.reshape(&[1])?)?.reshape(&dims)?)])
        }))
    }

    /// Mean of all elements, a scalar.
    pub fn mean(&self) -> Result<Tensor> {
        self.sum()?.scale(1.0 / self.len().max(1) as f32)
    }

    /// Sum over all axes but the last: `[.., D] -> [D]`.
    pub fn sum_rows(&self) -> Result<Tensor> {
        let y = run(&Sum::Rows, &[self])?.swap_remove(0);
        let dims = self.dims().to_vec();
        Ok(Node::record("sum_rows", &[self], y, move |dy| {
            Ok(vec![Some(Tensor::zeros(dy.device(), &dims)?.add(&dy)?)])
        }))
    }

    /// Sum over the last axis: `[.., D] -> [..]`.
    pub fn sum_last(&self) -> Result<Tensor> {
        let y = run(&Sum::Last, &[self])?.swap_remove(0);
        let dims = self.dims().to_vec();
        Ok(Node::record("sum_last", &[self], y, move |dy| {
            let (rows, d) = (dy.len(), dims.last().copied().unwrap_or(1));
            let zeros = Tensor::zeros(dy.device(), &[rows, d])?;
            Ok(vec![Some(zeros.add(&dy.reshape(&[rows, 1])?)?.reshape(&dims)?)])
        }))
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dims in [&[0, 3][..], &[1], &[4, 7], &[3, 2, 257], &[70_000, 2], &[5, 9001]] {
        let n: usize = dims.iter().product();
        let x = || vec![Operand::normal("x", dims)];
        let d = dims[dims.len() - 1];
        let cost = (n, 4 * n);
        all.push(
            Case::new(format!("sum {dims:?}"), x(), |x| Ok(vec![x[0].sum()?])).sums(n).cost(cost.0, cost.1),
        );
        all.push(
            Case::new(format!("sum_rows {dims:?}"), x(), |x| Ok(vec![x[0].sum_rows()?]))
                .sums(n / d)
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
