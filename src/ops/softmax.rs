//! Softmax and its logarithm over the last axis, and their derivatives from the output.

use crate::device::{Entry, Gpu, Host, Shader, params};
use crate::engine::{
    Case, Meta, Op, OpSpec, Operand, Timed, TimedSizes, cpu::math, launch, operands, rows_in_parallel, run1,
};
use crate::simd::Target;
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "softmax",
    formula: "y = e^x / sum e^x, or its logarithm, over the last axis",
    shaders: &[&SHADER],
    cases,
    timed,
};

params! {
    struct Params { n: u32, d: u32 }
}

static SHADER: Shader = Shader {
    name: "softmax",
    source: include_str!("../../shaders/softmax.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "forward", variants: launch::ROWS },
        Entry { name: "backward", variants: launch::ROWS },
        Entry { name: "log_forward", variants: launch::ROWS },
        Entry { name: "log_backward", variants: launch::ROWS },
    ],
};

/// `x -> y`, or the logarithm of that.
struct Forward {
    log: bool,
}

/// `(y, dy) -> dx`, where `y` is what the forward pass has given.
struct Backward {
    log: bool,
}

fn name(log: bool) -> &'static str {
    if log { "log_softmax" } else { "softmax" }
}

operands! {
    struct In { x }
}

impl Op for Forward {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        name(self.log)
    }

    fn infer(&self, &In { x }: &In<'_>) -> Result<[Meta; 1]> {
        x.require(self.name(), DType::F32)?;
        if x.shape().rank() == 0 {
            return Err(Error::shape(self.name(), "at least one axis", "a scalar"));
        }
        Ok([Meta::like(x)])
    }

    fn reference(&self, &In { x }: &In<'_>, [y]: [&mut Host; 1]) {
        let d = x.shape().last().max(1);
        for (y, x) in y.f64_mut().chunks_mut(d).zip(x.f64().chunks(d)) {
            let top = x.iter().fold(f64::MIN, |m, &v| m.max(v));
            let sum: f64 = x.iter().map(|v| (v - top).exp()).sum();
            for (y, v) in y.iter_mut().zip(x) {
                *y = if self.log { v - top - sum.ln() } else { (v - top).exp() / sum };
            }
        }
    }

    fn cpu(&self, &In { x }: &In<'_>, [y]: [&mut Host; 1]) {
        let d = x.shape().last();
        let x = x.f32();
        rows_in_parallel(y.f32_mut(), d, |i, y| {
            let x = &x[i * d..][..d];
            let top = x.iter().fold(f32::MIN, |m, &v| m.max(v));
            y.iter_mut().zip(x).for_each(|(y, v)| *y = math::exp(Target, v - top));
            let sum = math::sum_of(d, |k| y[k]);
            if self.log {
                let log_sum = sum.ln();
                y.iter_mut().zip(x).for_each(|(y, v)| *y = v - top - log_sum);
            } else {
                let scale = 1.0 / sum;
                y.iter_mut().for_each(|y| *y *= scale);
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let entry = if self.log { "log_forward" } else { "forward" };
        launch::per_row(gpu, &SHADER, entry, x, y, |n, d| Params { n, d })
    }
}

operands! {
    struct BackwardIn { y, dy }
}

impl Op for Backward {
    type In<'a> = BackwardIn<'a>;

    fn name(&self) -> &'static str {
        name(self.log)
    }

    fn infer(&self, &BackwardIn { y, .. }: &BackwardIn<'_>) -> Result<[Meta; 1]> {
        Ok([Meta::like(y)])
    }

    fn reference(&self, &BackwardIn { y, dy }: &BackwardIn<'_>, [dx]: [&mut Host; 1]) {
        let d = y.shape().last().max(1);
        let rows = y.f64().chunks(d).zip(dy.f64().chunks(d));
        for (dx, (y, dy)) in dx.f64_mut().chunks_mut(d).zip(rows) {
            let dot: f64 = y.iter().zip(dy).map(|(y, dy)| y * dy).sum();
            let sum: f64 = dy.iter().sum();
            for k in 0..d {
                dx[k] = if self.log { dy[k] - y[k].exp() * sum } else { y[k] * (dy[k] - dot) };
            }
        }
    }

    fn cpu(&self, &BackwardIn { y, dy }: &BackwardIn<'_>, [dx]: [&mut Host; 1]) {
        let d = y.shape().last();
        let y = y.f32();
        let dy = dy.f32();
        rows_in_parallel(dx.f32_mut(), d, |i, dx| {
            let y = &y[i * d..][..d];
            let dy = &dy[i * d..][..d];
            let all = dx.iter_mut().zip(y.iter().zip(dy));
            if self.log {
                let sum = math::sum_of(d, |k| dy[k]);
                all.for_each(|(dx, (y, dy))| *dx = dy - math::exp(Target, *y) * sum);
            } else {
                let dot = math::sum_of(d, |k| y[k] * dy[k]);
                all.for_each(|(dx, (y, dy))| *dx = y * (dy - dot));
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &BackwardIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        let entry = if self.log { "log_backward" } else { "backward" };
        launch::per_row(gpu, &SHADER, entry, x, y, |n, d| Params { n, d })
    }
}

impl Tensor {
    /// Softmax over the last axis: `y[n,d] = e^(x[n,d] - m[n]) / sum_d e^(x[n,d] - m[n])` with the row's maximum
    /// `m[n]`, `[.., D] -> [.., D]`.
    ///
    /// To mask entries, give them a large negative finite number such as -1e30: they come out as 0.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let x = Tensor::from_f32(&Device::cpu(), &[1, 3], &[1e4, 1e4, -1e30])?;
    /// assert_eq!(x.softmax()?.to_f32()?, [0.5, 0.5, 0.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The tensor is a scalar, or holds indices.
    pub fn softmax(&self) -> Result<Tensor> {
        self.softmax_or_log(false)
    }

    /// Logarithm of [`Tensor::softmax`], without its underflow: `y[n,d] = x[n,d] - m[n] - ln sum_d e^(x[n,d] - m[n])`
    /// with the row's maximum `m[n]`, `[.., D] -> [.., D]`. Derivative `dx = dy - e^y sum_d dy`.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let x = Tensor::from_f32(&Device::cpu(), &[1, 2], &[1000.0, 0.0])?;
    /// assert_eq!(x.log_softmax()?.to_f32()?, [0.0, -1000.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The tensor is a scalar, or holds indices.
    pub fn log_softmax(&self) -> Result<Tensor> {
        self.softmax_or_log(true)
    }

    fn softmax_or_log(&self, log: bool) -> Result<Tensor> {
        let y = run1(&Forward { log }, In { x: self })?;
        let kept = y.detach();
        Ok(Node::record(name(log), &[self], y, move |dy| {
            Ok(vec![Some(run1(&Backward { log }, BackwardIn { y: &kept, dy: &dy })?)])
        }))
    }
}

fn cases() -> Vec<Case> {
    let shapes: [(&[usize], f32); 9] = [
        (&[0, 4], 1.0),
        (&[3, 0], 1.0),
        (&[1, 1], 1.0),
        (&[5], 1.0),
        (&[2, 3, 63], 3.0),
        (&[4, 513], 1.0),
        // Far apart: nearly one-hot rows, and exponents that would overflow without the maximum.
        (&[3, 5], 100.0),
        (&[2, 49_157], 2.0),
        (&[70_000, 2], 1.0),
    ];
    type F = fn(&Tensor) -> Result<Tensor>;
    let kinds: [(&str, F); 2] = [("softmax", Tensor::softmax), ("log_softmax", Tensor::log_softmax)];
    let mut all = Vec::new();
    for (dims, spread) in shapes {
        let n = dims.iter().product::<usize>();
        let d = dims[dims.len() - 1];
        for (name, f) in kinds {
            let inputs = vec![Operand::normal("x", dims).times(spread)];
            let case = Case::new(format!("{name} {dims:?} x {spread}"), inputs, move |x| Ok(vec![f(&x[0])?]))
                .sums(d)
                .cost(4 * n, 8 * n)
                // A row of one value has a constant y, a nearly one-hot row is saturated: their gradients are zero
                // on paper, and y - 1 has no digits in f32.
                .floor(if d == 1 || spread == 100.0 { 1.0 } else { 1e-30 });
            all.push(case);
        }
    }
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, d] = sizes.plane();
    let n = rows * d;
    let inputs = vec![Operand::normal("x", &[rows, d])];
    let softmax = Timed::plain(format!("{rows}x{d}"), inputs, (4 * n, 8 * n), |x| x[0].softmax());
    let inputs = vec![Operand::normal("x", &[rows, d])];
    let log = Timed::plain(format!("log {rows}x{d}"), inputs, (4 * n, 8 * n), |x| x[0].log_softmax());
    [softmax, log].into_iter().map(|timed| timed.sums(d).backward(4 * n, 12 * n)).collect()
}
