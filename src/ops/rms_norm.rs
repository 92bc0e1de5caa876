//! Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467).

use crate::device::{Entry, Host, Shader};
use crate::engine::{
    Case, Meta, Op, OpSpec, Operand, cpu::math, launch, rows_in_parallel, rows_per_task, run,
};
use crate::simd::wide;
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;

pub(super) static SPEC: OpSpec =
    OpSpec { name: "rms_norm", formula: "y = x / sqrt(mean(x^2) + eps) * w", shaders: &[&SHADER], cases };

static SHADER: Shader = Shader {
    name: "rms_norm",
    source: include_str!("../../shaders/rms_norm.wgsl"),
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

impl Op for Forward {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        let (x, w) = (x[0], x[1]);
        x.expect(self.name(), DType::F32)?;
        w.expect(self.name(), DType::F32)?;
        if w.dims() != [x.shape().last()] {
            return Err(Error::shape(self.name(), format!("weight {} for rows of {}", w.shape(), x.shape())));
        }
        Ok(vec![Meta::like(x), Meta::f32(&[x.shape().rows()])?])
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let (d, x, w) = (x[0].shape().last(), x[0].f64(), x[1].f64());
        let [y, inv] = y else { unreachable!("outputs are as inferred") };
        let rows = y.f64_mut().chunks_mut(d.max(1)).zip(x.chunks(d.max(1)));
        for ((y, x), inv) in rows.zip(inv.f64_mut()) {
            let mean = x.iter().map(|v| v * v).sum::<f64>() / d as f64;
            *inv = 1.0 / (mean + self.eps as f64).sqrt();
            for k in 0..d {
                y[k] = x[k] * *inv * w[k];
            }
        }
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        let (d, x, w) = (x[0].shape().last().max(1), x[0].f32(), x[1].f32());
        let [y, inv] = y else { unreachable!("outputs are as inferred") };
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

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        launch::per_row(gpu, &SHADER, "forward", x, y, &[self.eps.to_bits()])
    }
}

impl Op for BackwardX {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        Ok(vec![Meta::like(x[0])])
    }

    fn reference(&self, x: &[&Tensor], dx: &mut [Host]) {
        let d = x[0].shape().last().max(1);
        let (x, w, inv, dy) = (x[0].f64(), x[1].f64(), x[2].f64(), x[3].f64());
        for (i, dx) in dx[0].f64_mut().chunks_mut(d).enumerate() {
            let (x, dy) = (&x[i * d..], &dy[i * d..]);
            let dot: f64 = (0..d).map(|k| w[k] * dy[k] * x[k]).sum();
            let c = dot * inv[i] * inv[i] / d as f64;
            for k in 0..d {
                dx[k] = inv[i] * (w[k] * dy[k] - c * x[k]);
            }
        }
    }

    fn cpu(&self, x: &[&Tensor], dx: &mut [Host]) {
        let d = x[0].shape().last().max(1);
        let (x, w, inv, dy) = (x[0].f32(), x[1].f32(), x[2].f32(), x[3].f32());
        rows_in_parallel(dx[0].f32_mut(), d, |i, dx| {
            let (x, dy) = (&x[i * d..][..d], &dy[i * d..][..d]);
            let dot = math::sum_of(d, |k| w[k] * dy[k] * x[k]);
            let c = dot * inv[i] * inv[i] / d as f32;
            for (dx, ((x, dy), w)) in dx.iter_mut().zip(x.iter().zip(dy).zip(w)) {
                *dx = inv[i] * (w * dy - c * x);
            }
        });
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        launch::per_row(gpu, &SHADER, "backward_x", x, y, &[0])
    }
}

impl Tensor {
    /// `y[n,d] = x[n,d] / sqrt(mean_d(x[n,d]^2) + eps) * w[d]`, rows along the last axis.
    ///
    /// # Errors
    /// `w` is not `[D]`.
    pub fn rms_norm(&self, w: &Tensor, eps: f32) -> Result<Tensor> {
        let mut out = run(&Forward { eps }, &[self, w])?;
        let (inv, y) = (out.swap_remove(1), out.swap_remove(0));
        let (x, w_value) = (self.detach(), w.detach());
        let (need_x, need_w) = (self.requires_grad(), w.requires_grad());
        let again = {
            let (x, w) = (x.clone(), w_value.clone());
            move || Ok(run(&Forward { eps }, &[&x, &w])?.swap_remove(0))
        };
        Ok(Node::record_again("rms_norm", &[self, w], y, again, move |dy| {
            let dx = match need_x {
                true => Some(run(&BackwardX, &[&x, &w_value, &inv, &dy])?.swap_remove(0)),
                false => None,
            };
            // dw = sum over rows of dy * y / w; y / w = x * inv is the output for a weight of ones.
            let dw = match need_w {
                true => {
                    let ones = Tensor::full(x.device(), w_value.dims(), 1.0)?;
                    Some(x.rms_norm(&ones, eps)?.mul(&dy)?.sum_rows()?)
                }
                false => None,
            };
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
