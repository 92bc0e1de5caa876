//! Layer normalisation (Ba et al. 2016, arXiv:1607.06450).

use crate::device::{Entry, Gpu, Host, Shader, params};
use crate::engine::{
    Case, Meta, Op, OpSpec, Operand, Operands, Timed, TimedSizes, cpu::math, launch, operands,
    rows_in_parallel, run, run1,
};
use crate::tape::{Node, recording};
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "layer_norm",
    formula: "y = (x - mean(x)) / sqrt(var(x) + eps) * w + b",
    shaders: &[&SHADER],
    cases,
    timed,
};

params! {
    struct Params { n: u32, d: u32, eps: f32 }
}

static SHADER: Shader = Shader {
    name: "layer_norm",
    source: include_str!("../../shaders/layer_norm.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "forward", variants: launch::ROWS },
        Entry { name: "backward_x", variants: launch::ROWS },
    ],
};

/// `(x, w, b) -> (y, stats)`, with the mean and `1/sqrt(var + eps)` of each row in `stats`.
struct Forward {
    eps: f32,
}

/// `(x, w, stats, dy) -> dx`
struct BackwardX;

operands! {
    struct In { x, w, b }
}

impl Op<2> for Forward {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn infer(&self, input: &In<'_>) -> Result<[Meta; 2]> {
        let &In { x, w, b } = input;
        input.require(self.name(), DType::F32)?;
        for (what, t) in [("weight", w), ("bias", b)] {
            if t.dims() != [x.shape().last()] {
                return Err(Error::shape(
                    self.name(),
                    format!("a {what} for the rows of {}", x.shape()),
                    t.shape(),
                ));
            }
        }
        Ok([Meta::like(x), Meta::f32(&[x.shape().rows(), 2])?])
    }

    fn reference(&self, &In { x, w, b }: &In<'_>, [y, stats]: [&mut Host; 2]) {
        let d = x.shape().last();
        let x = x.f64();
        let w = w.f64();
        let b = b.f64();
        let rows = y.f64_mut().chunks_mut(d.max(1)).zip(x.chunks(d.max(1)));
        for ((y, x), stats) in rows.zip(stats.f64_mut().chunks_mut(2)) {
            let mean = x.iter().sum::<f64>() / d as f64;
            let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / d as f64;
            let scale = 1.0 / (var + self.eps as f64).sqrt();
            for k in 0..d {
                y[k] = (x[k] - mean) * scale * w[k] + b[k];
            }
            stats.copy_from_slice(&[mean, scale]);
        }
    }

    fn cpu(&self, &In { x, w, b }: &In<'_>, [y, stats]: [&mut Host; 2]) {
        let d = x.shape().last();
        let x = x.f32();
        let w = w.f32();
        let b = b.f32();
        stats.f32_mut().par_chunks_mut(2).zip(x.par_chunks(d.max(1))).with_min_len(16).for_each(
            |(stats, x)| {
                let mean = math::sum_of(d, |k| x[k]) / d as f32;
                let var = math::sum_of(d, |k| (x[k] - mean) * (x[k] - mean)) / d as f32;
                stats.copy_from_slice(&[mean, 1.0 / (var + self.eps).sqrt()]);
            },
        );
        let stats = stats.f32();
        rows_in_parallel(y.f32_mut(), d, |i, y| {
            let mean = stats[2 * i];
            let scale = stats[2 * i + 1];
            for (y, (x, (w, b))) in y.iter_mut().zip(x[i * d..].iter().zip(w.iter().zip(b))) {
                *y = (x - mean) * scale * w + b;
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 2]) -> Result<()> {
        launch::per_row(gpu, &SHADER, "forward", x, y, |n, d| Params { n, d, eps: self.eps })
    }
}

operands! {
    struct BackwardIn { x, w, stats, dy }
}

impl Op for BackwardX {
    type In<'a> = BackwardIn<'a>;

    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn infer(&self, &BackwardIn { x, .. }: &BackwardIn<'_>) -> Result<[Meta; 1]> {
        Ok([Meta::like(x)])
    }

    fn reference(&self, &BackwardIn { x, w, stats, dy }: &BackwardIn<'_>, [dx]: [&mut Host; 1]) {
        let d = x.shape().last().max(1);
        let x = x.f64();
        let w = w.f64();
        let stats = stats.f64();
        let dy = dy.f64();
        for (i, dx) in dx.f64_mut().chunks_mut(d).enumerate() {
            let x = &x[i * d..];
            let dy = &dy[i * d..];
            let mean = stats[2 * i];
            let scale = stats[2 * i + 1];
            let xhat = |k: usize| (x[k] - mean) * scale;
            let sum = (0..d).map(|k| w[k] * dy[k]).sum::<f64>() / d as f64;
            let dot = (0..d).map(|k| w[k] * dy[k] * xhat(k)).sum::<f64>() / d as f64;
            for k in 0..d {
                dx[k] = scale * (w[k] * dy[k] - sum - xhat(k) * dot);
            }
        }
    }

    fn cpu(&self, &BackwardIn { x, w, stats, dy }: &BackwardIn<'_>, [dx]: [&mut Host; 1]) {
        let d = x.shape().last();
        let x = x.f32();
        let w = &w.f32()[..d];
        let stats = stats.f32();
        let dy = dy.f32();
        rows_in_parallel(dx.f32_mut(), d, |i, dx| {
            let x = &x[i * d..][..d];
            let dy = &dy[i * d..][..d];
            let mean = stats[2 * i];
            let scale = stats[2 * i + 1];
            let sum = math::sum_of(d, |k| w[k] * dy[k]) / d as f32;
            let dot = math::sum_of(d, |k| w[k] * dy[k] * (x[k] - mean)) * scale / d as f32;
            for k in 0..d {
                dx[k] = scale * (w[k] * dy[k] - sum - (x[k] - mean) * scale * dot);
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &BackwardIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch::per_row(gpu, &SHADER, "backward_x", x, y, |n, d| Params { n, d, eps: 0.0 })
    }
}

impl Tensor {
    /// Layer normalisation: `y[n,d] = (x[n,d] - mean_d x[n]) / sqrt(var_d x[n] + eps) * w[d] + b[d]`, rows along the
    /// last axis, variance over D (not D - 1).
    ///
    /// # Errors
    /// `w` or `b` is not `[D]`.
    pub fn layer_norm(&self, w: &Tensor, b: &Tensor, eps: f32) -> Result<Tensor> {
        let [y, stats] = run(&Forward { eps }, In { x: self, w, b })?;
        let need_x = self.requires_grad();
        let need_w = w.requires_grad();
        let need_b = b.requires_grad();
        let kept =
            (recording(&[self, w, b]) && (need_x || need_w)).then(|| (self.detach(), w.detach(), stats));
        Ok(Node::record("layer_norm", &[self, w, b], y, move |dy| {
            let db = need_b.then(|| dy.sum_rows()).transpose()?;
            let Some((x, w, stats)) = kept else { return Ok(vec![None, None, db]) };
            let inputs = BackwardIn { x: &x, w: &w, stats: &stats, dy: &dy };
            let dx = need_x.then(|| run1(&BackwardX, inputs)).transpose()?;
            // dw = sum over rows of dy * xhat; xhat is the output for a weight of ones and a bias of zeros.
            let mut dw = None;
            if need_w {
                let ones = Tensor::full(x.device(), w.dims(), 1.0)?;
                let zeros = Tensor::zeros(x.device(), w.dims())?;
                dw = Some(x.layer_norm(&ones, &zeros, eps)?.mul(&dy)?.sum_rows()?);
            }
            Ok(vec![dx, dw, db])
        }))
    }
}

fn cases() -> Vec<Case> {
    let shapes: [&[usize]; 8] =
        [&[0, 8], &[2, 0], &[1, 1], &[3, 5], &[2, 3, 63], &[4, 577], &[3, 2048], &[70_000, 3]];
    let mut all: Vec<Case> = shapes
        .iter()
        .map(|dims| {
            let d = dims[dims.len() - 1];
            let n: usize = dims.iter().product();
            let inputs =
                vec![Operand::normal("x", dims), Operand::normal("w", &[d]), Operand::normal("b", &[d])];
            Case::new(format!("{dims:?}"), inputs, |x| Ok(vec![x[0].layer_norm(&x[1], &x[2], 1e-5)?]))
                .sums(d.max(n / d.max(1)))
                .cost(7 * n, 8 * n)
                // A row of one value has y = b: the other gradients are zero on paper.
                .floor(if d == 1 { 1.0 } else { 1e-30 })
        })
        .collect();
    let frozen = |x: &'static str, w: &'static str, b: &'static str| {
        let input = |name: &str, dims: &[usize]| match name {
            "frozen" => Operand::normal("frozen", dims).frozen(),
            name => Operand::normal(name, dims),
        };
        let inputs = vec![input(x, &[4, 6]), input(w, &[6]), input(b, &[6])];
        Case::new(format!("{x} {w} {b}"), inputs, |x| Ok(vec![x[0].layer_norm(&x[1], &x[2], 1e-5)?]))
    };
    all.extend([
        frozen("x", "frozen", "frozen"),
        frozen("frozen", "w", "frozen"),
        frozen("frozen", "frozen", "b"),
    ]);
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, d] = sizes.plane();
    let n = rows * d;
    let weight = |name| Operand::normal(name, &[d]).frozen();
    let inputs = vec![Operand::normal("x", &[rows, d]), weight("w"), weight("b")];
    let norm =
        Timed::plain(format!("{rows}x{d}"), inputs, (7 * n, 8 * n), |x| x[0].layer_norm(&x[1], &x[2], 1e-5));
    vec![norm.sums(d).backward(11 * n, 12 * n)]
}
