//! Softmax over the last axis, and its derivative from the output.

use crate::device::{Entry, Host, Shader};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, cpu::math, launch, rows_in_parallel, run};
use crate::simd::Target;
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};

pub(super) static SPEC: OpSpec =
    OpSpec { name: "softmax", formula: "y = e^x / sum e^x, over the last axis", shaders: &[&SHADER], cases };

static SHADER: Shader = Shader {
    name: "softmax",
    source: include_str!("../../shaders/softmax.wgsl"),
    entries: &[
        Entry { name: "forward", variants: launch::ROWS },
        Entry { name: "backward", variants: launch::ROWS },
    ],
};

/// `x -> y`
struct Forward;
/// `(y, dy) -> dx`
struct Backward;

impl Op for Forward {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        x[0].expect(self.name(), DType::F32)?;
        if x[0].shape().rank() == 0 {
            return Err(Error::shape(self.name(), "needs at least one axis, got a scalar"));
        }
        Ok(vec![Meta::like(x[0])])
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let d = x[0].shape().last().max(1);
        for (y, x) in y[0].f64_mut().chunks_mut(d).zip(x[0].f64().chunks(d)) {
            let top = x.iter().fold(f64::MIN, |m, &v| m.max(v));
            let sum: f64 = x.iter().map(|v| (v - top).exp()).sum();
            y.iter_mut().zip(x).for_each(|(y, v)| *y = (v - top).exp() / sum);
        }
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        let (d, x) = (x[0].shape().last(), x[0].f32());
        rows_in_parallel(y[0].f32_mut(), d, |i, y| {
            let x = &x[i * d..][..d];
            let top = x.iter().fold(f32::MIN, |m, &v| m.max(v));
            y.iter_mut().zip(x).for_each(|(y, v)| *y = math::exp::<Target>(v - top));
            let scale = 1.0 / math::sum_of(d, |k| y[k]);
            y.iter_mut().for_each(|y| *y *= scale);
        });
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        launch::per_row(gpu, &SHADER, "forward", x, y, &[])
    }
}

impl Op for Backward {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        Ok(vec![Meta::like(x[0])])
    }

    fn reference(&self, x: &[&Tensor], dx: &mut [Host]) {
        let d = x[0].shape().last().max(1);
        let rows = x[0].f64().chunks(d).zip(x[1].f64().chunks(d));
        for (dx, (y, dy)) in dx[0].f64_mut().chunks_mut(d).zip(rows) {
            let dot: f64 = y.iter().zip(dy).map(|(y, dy)| y * dy).sum();
            for k in 0..d {
                dx[k] = y[k] * (dy[k] - dot);
            }
        }
    }

    fn cpu(&self, x: &[&Tensor], dx: &mut [Host]) {
        let (d, y, dy) = (x[0].shape().last(), x[0].f32(), x[1].f32());
        rows_in_parallel(dx[0].f32_mut(), d, |i, dx| {
            let (y, dy) = (&y[i * d..][..d], &dy[i * d..][..d]);
            let dot = math::sum_of(d, |k| y[k] * dy[k]);
            dx.iter_mut().zip(y.iter().zip(dy)).for_each(|(dx, (y, dy))| *dx = y * (dy - dot));
        });
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        launch::per_row(gpu, &SHADER, "backward", x, y, &[])
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
        let y = run(&Forward, &[self])?.swap_remove(0);
        let kept = y.detach();
        Ok(Node::record("softmax", &[self], y, move |dy| {
            Ok(vec![Some(run(&Backward, &[&kept, &dy])?.swap_remove(0))])
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
    let case = |&(dims, spread): &(&[usize], f32)| {
        let (n, d) = (dims.iter().product::<usize>(), dims[dims.len() - 1]);
        let inputs = vec![Operand::normal("x", dims).times(spread)];
        Case::new(format!("{dims:?} x {spread}"), inputs, |x| Ok(vec![x[0].softmax()?]))
            .sums(d)
            .cost(4 * n, 8 * n)
            // A row of one value has y = 1, a nearly one-hot row is saturated: their gradients are zero on paper,
            // and y - 1 has no digits in f32.
            .floor(if d == 1 || spread == 100.0 { 1.0 } else { 1e-30 })
    };
    shapes.iter().map(case).collect()
}
