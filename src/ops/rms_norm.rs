//! Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467).

use crate::device::{Entry, Gpu, Host, Shader, params};
use crate::engine::{
    Case, Meta, Op, OpSpec, Operand, Timed, TimedSizes, cpu::math, launch, operands, rows_in_parallel,
    rows_per_task, run, run1,
};
use crate::simd::wide;
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "rms_norm",
    formula: "y = x / sqrt(mean(x^2) + eps) * w",
    shaders: &[&SHADER],
    cases,
    timed,
};

params! {
    struct Params { n: u32, d: u32, eps: f32 }
}

static SHADER: Shader = Shader {
    name: "rms_norm",
    source: include_str!("../../shaders/rms_norm.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "forward", variants: launch::ROWS },
        Entry { name: "backward_x", variants: launch::ROWS },
    ],
};

/// `(x, w) -> (y, inv_rms)`
struct Forward {
    eps: f32,
}

/// `(x, w, inv_rms, dy) -> dx`
struct BackwardX;

operands! {
    struct In { x, w }
}

impl Op<2> for Forward {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn infer(&self, &In { x, w }: &In<'_>) -> Result<[Meta; 2]> {
        x.require(self.name(), DType::F32)?;
        w.require(self.name(), DType::F32)?;
        if w.dims() != [x.shape().last()] {
            return Err(Error::shape(
                self.name(),
                format!("a weight for the rows of {}", x.shape()),
                w.shape(),
            ));
        }
        Ok([Meta::like(x), Meta::f32(&[x.shape().rows()])?])
    }

    fn reference(&self, &In { x, w }: &In<'_>, [y, inv]: [&mut Host; 2]) {
        let d = x.shape().last();
        let x = x.f64();
        let w = w.f64();
        let rows = y.f64_mut().chunks_mut(d.max(1)).zip(x.chunks(d.max(1)));
        for ((y, x), inv) in rows.zip(inv.f64_mut()) {
            let mean = x.iter().map(|v| v * v).sum::<f64>() / d as f64;
            *inv = 1.0 / (mean + self.eps as f64).sqrt();
            for k in 0..d {
                y[k] = x[k] * *inv * w[k];
            }
        }
    }

    fn cpu(&self, &In { x, w }: &In<'_>, [y, inv]: [&mut Host; 2]) {
        let d = x.shape().last().max(1);
        let x = x.f32();
        let w = w.f32();
        let rows = y.f32_mut().par_chunks_mut(d).zip(inv.f32_mut()).zip(x.par_chunks(d));
        rows.with_min_len(rows_per_task(d)).for_each(|((y, inv), x)| {
            wide(|| {
                *inv = 1.0 / (math::dot(x, x) / d as f32 + self.eps).sqrt();
                for (y, (x, w)) in y.iter_mut().zip(x.iter().zip(w)) {
                    *y = x * *inv * w;
                }
            });
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 2]) -> Result<()> {
        launch::per_row(gpu, &SHADER, "forward", x, y, |n, d| Params { n, d, eps: self.eps })
    }
}

operands! {
    struct BackwardIn { x, w, inv, dy }
}

impl Op for BackwardX {
    type In<'a> = BackwardIn<'a>;

    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn infer(&self, &BackwardIn { x, .. }: &BackwardIn<'_>) -> Result<[Meta; 1]> {
        Ok([Meta::like(x)])
    }

    fn reference(&self, &BackwardIn { x, w, inv, dy }: &BackwardIn<'_>, [dx]: [&mut Host; 1]) {
        let d = x.shape().last().max(1);
        let x = x.f64();
        let w = w.f64();
        let inv = inv.f64();
        let dy = dy.f64();
        for (i, dx) in dx.f64_mut().chunks_mut(d).enumerate() {
            let x = &x[i * d..];
            let dy = &dy[i * d..];
            let dot: f64 = (0..d).map(|k| w[k] * dy[k] * x[k]).sum();
            let c = dot * inv[i] * inv[i] / d as f64;
            for k in 0..d {
                dx[k] = inv[i] * (w[k] * dy[k] - c * x[k]);
            }
        }
    }

    fn cpu(&self, &BackwardIn { x, w, inv, dy }: &BackwardIn<'_>, [dx]: [&mut Host; 1]) {
        let d = x.shape().last().max(1);
        let x = x.f32();
        let w = w.f32();
        let inv = inv.f32();
        let dy = dy.f32();
        rows_in_parallel(dx.f32_mut(), d, |i, dx| {
            let x = &x[i * d..][..d];
            let dy = &dy[i * d..][..d];
            let dot = math::sum_of(d, |k| w[k] * dy[k] * x[k]);
            let c = dot * inv[i] * inv[i] / d as f32;
            for (dx, ((x, dy), w)) in dx.iter_mut().zip(x.iter().zip(dy).zip(w)) {
                *dx = inv[i] * (w * dy - c * x);
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &BackwardIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch::per_row(gpu, &SHADER, "backward_x", x, y, |n, d| Params { n, d, eps: 0.0 })
    }
}

impl Tensor {
    /// `y[n,d] = x[n,d] / sqrt(mean_d(x[n,d]^2) + eps) * w[d]`, rows along the last axis.
    ///
    /// # Errors
    /// `w` is not `[D]`.
    pub fn rms_norm(&self, w: &Tensor, eps: f32) -> Result<Tensor> {
        let [y, inv] = run(&Forward { eps }, In { x: self, w })?;
        let x = self.detach();
        let w_value = w.detach();
        let need_x = self.requires_grad();
        let need_w = w.requires_grad();
        let again = {
            let x = x.clone();
            let w = w_value.clone();
            move || {
                let [y, _] = run(&Forward { eps }, In { x: &x, w: &w })?;
                Ok(y)
            }
        };
        Ok(Node::record_again("rms_norm", &[self, w], y, again, move |dy| {
            let inputs = BackwardIn { x: &x, w: &w_value, inv: &inv, dy: &dy };
            let dx = need_x.then(|| run1(&BackwardX, inputs)).transpose()?;
            // dw = sum over rows of dy * y / w; y / w = x * inv is the output for a weight of ones.
            let mut dw = None;
            if need_w {
                let ones = Tensor::full(x.device(), w_value.dims(), 1.0)?;
                dw = Some(x.rms_norm(&ones, eps)?.mul(&dy)?.sum_rows()?);
            }
            Ok(vec![dx, dw])
        }))
    }
}

fn cases() -> Vec<Case> {
    let shapes: [&[usize]; 7] = [&[0, 8], &[1, 1], &[3, 5], &[2, 3, 64], &[4, 577], &[3, 2048], &[70_000, 2]];
    shapes
        .iter()
        .map(|dims| {
            let d = dims[dims.len() - 1];
            let n: usize = dims.iter().product();
            let inputs = vec![Operand::normal("x", dims), Operand::normal("w", &[d])];
            Case::new(format!("{dims:?}"), inputs, |x| Ok(vec![x[0].rms_norm(&x[1], 1e-5)?]))
                .sums(d.max(n / d))
                .cost(4 * n, 8 * n)
                // A row of one value has y = +-w: its gradient is zero on paper.
                .floor(if d == 1 { 1.0 } else { 1e-30 })
        })
        .collect()
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, d] = sizes.plane();
    let n = rows * d;
    let inputs = vec![Operand::normal("x", &[rows, d]), Operand::normal("w", &[d]).frozen()];
    let norm = Timed::plain(format!("{rows}x{d}"), inputs, (4 * n, 8 * n), |x| x[0].rms_norm(&x[1], 1e-5));
    vec![norm.sums(d).backward(8 * n, 12 * n)]
}
