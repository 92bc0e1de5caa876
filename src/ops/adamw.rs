//! One step of AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), in place.

use crate::device::{Entry, Gpu, Host, Shader, params};
use crate::engine::{
    Case, Computation, Meta, Op, OpSpec, Operand, Operands, Timed, TimedSizes, launch, operands, run_in_place,
};
use crate::{DType, Device, Error, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "adamw",
    formula: "w = (1 - lr wd) w - lr m / (sqrt(v) + eps), m and v corrected for bias",
    shaders: &[&SHADER],
    cases,
    timed,
};

params! {
    struct Params {
        n: u32, beta1: f32, rest1: f32, beta2: f32, rest2: f32, keep: f32, rate: f32, inv_root_c2: f32,
        eps: f32, scale: f32,
    }
}

static SHADER: Shader = Shader {
    name: "adamw",
    source: include_str!("../../shaders/adamw.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "step", variants: launch::ELEMENTS },
        Entry { name: "step_by_factor", variants: launch::ELEMENTS },
    ],
};

/// Elements of one parallel task.
const CHUNK: usize = 1 << 12;

/// Options of one step of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the running mean of gradients.
    pub beta1: f64,
    /// Decay of the running mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay: the parameter shrinks by `lr * weight_decay`.
    pub weight_decay: f64,
    /// Number of this step, from 1: sets the bias corrections `1 - beta^step`.
    pub step: u32,
    /// The gradient is multiplied by this, for example by one over the number of tokens.
    pub grad_scale: f64,
}

impl Default for AdamWStep {
    /// The first step with PyTorch's defaults.
    fn default() -> Self {
        let beta1 = 0.9;
        let beta2 = 0.999;
        AdamWStep { lr: 1e-3, beta1, beta2, eps: 1e-8, weight_decay: 1e-2, step: 1, grad_scale: 1.0 }
    }
}

impl AdamWStep {
    fn check(&self) -> Result<()> {
        let fine = |name: &str, value: f64, fine: bool, rule: &str| {
            if fine && value.is_finite() {
                Ok(())
            } else {
                Err(Error::config(format!("adamw {name}"), value, rule))
            }
        };
        fine("lr", self.lr, self.lr >= 0.0, "finite and not negative")?;
        fine("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), "in [0, 1)")?;
        fine("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), "in [0, 1)")?;
        fine("eps", self.eps, self.eps > 0.0, "positive")?;
        fine("weight_decay", self.weight_decay, self.weight_decay >= 0.0, "finite and not negative")?;
        fine("step", self.step as f64, self.step > 0, "at least 1")
    }

    /// `1 - beta^step` for both.
    fn corrections(&self) -> (f64, f64) {
        let t = self.step as f64;
        (1.0 - self.beta1.powf(t), 1.0 - self.beta2.powf(t))
    }

    /// The constants of the kernels: beta1, 1 - beta1, beta2, 1 - beta2, keep, rate, 1/sqrt(c2), eps, scale.
    fn constants(&self) -> [f32; 9] {
        let (c1, c2) = self.corrections();
        [
            self.beta1,
            1.0 - self.beta1,
            self.beta2,
            1.0 - self.beta2,
            1.0 - self.lr * self.weight_decay,
            self.lr / c1,
            1.0 / c2.sqrt(),
            self.eps,
            self.grad_scale,
        ]
        .map(|v| v as f32)
    }
}

/// `(grad[, factor])` updates `(w, m, v)`.
struct Step(AdamWStep);

operands! {
    struct In { grad; factor }
}

impl Op<3> for Step {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        "adamw"
    }

    fn infer(&self, x: &In<'_>) -> Result<[Meta; 3]> {
        self.0.check()?;
        x.require(self.name(), DType::F32)?;
        if let Some(factor) = x.factor.filter(|f| f.len() != 1) {
            return Err(Error::shape(self.name(), "a factor of the gradient of one number", factor.shape()));
        }
        Ok([(); 3].map(|()| Meta::like(x.grad)))
    }

    fn reference(&self, &In { grad, factor }: &In<'_>, [w, m, v]: [&mut Host; 3]) {
        let o = &self.0;
        let (c1, c2) = o.corrections();
        let scale = o.grad_scale * factor.map_or(1.0, |f| f.f64()[0]);
        let w = w.f64_mut();
        let m = m.f64_mut();
        let v = v.f64_mut();
        for (i, grad) in grad.f64().iter().enumerate() {
            let g = scale * grad;
            m[i] = o.beta1 * m[i] + (1.0 - o.beta1) * g;
            v[i] = o.beta2 * v[i] + (1.0 - o.beta2) * g * g;
            w[i] -= o.lr * o.weight_decay * w[i];
            w[i] -= o.lr * (m[i] / c1) / ((v[i] / c2).sqrt() + o.eps);
        }
    }

    fn cpu(&self, &In { grad, factor }: &In<'_>, [w, m, v]: [&mut Host; 3]) {
        let [beta1, rest1, beta2, rest2, keep, rate, inv_root_c2, eps, scale] = self.0.constants();
        let scale = scale * factor.map_or(1.0, |f| f.f32()[0]);
        let state = m.f32_mut().par_chunks_mut(CHUNK).zip(v.f32_mut().par_chunks_mut(CHUNK));
        let all = w.f32_mut().par_chunks_mut(CHUNK).zip(state).zip(grad.f32().par_chunks(CHUNK));
        all.for_each(|((w, (m, v)), grad)| {
            for (((w, m), v), grad) in w.iter_mut().zip(m).zip(v).zip(grad) {
                let g = scale * grad;
                *m = beta1 * *m + rest1 * g;
                *v = beta2 * *v + rest2 * g * g;
                *w = keep * *w - rate * *m / (v.sqrt() * inv_root_c2 + eps);
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 3]) -> Result<()> {
        use crate::device::Bind;
        let n = x.grad.len();
        let mut bind = launch::binds(&[x.grad], y);
        bind.extend(x.factor.map(|f| Bind::Read(f.buffer())));
        let entry = if x.factor.is_some() { "step_by_factor" } else { "step" };
        let [beta1, rest1, beta2, rest2, keep, rate, inv_root_c2, eps, scale] = self.0.constants();
        let params = Params { n: n as u32, beta1, rest1, beta2, rest2, keep, rate, inv_root_c2, eps, scale };
        let kernel = launch::Kernel { shader: &SHADER, entry, variant: &launch::ELEMENTS[0] };
        kernel.run(gpu, &bind, &params, n.div_ceil(launch::WG), 15 * n)
    }
}

/// One step of AdamW on a parameter and its moments, in place; nothing is recorded or read back.
///
/// With `g = grad_scale * factor * grad`: `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, then
/// `w = (1 - lr wd) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`: PyTorch's `AdamW`. `factor` is one number
/// on the device, such as [`clip_factor`](Tensor::clip_factor). Memory that other tensors share is copied first.
///
/// ```
/// use mixlora::{Device, Tensor, ops::adamw::{AdamWStep, adamw}};
/// let cpu = Device::cpu();
/// let grad = Tensor::from_f32(&cpu, &[1], &[5.0])?;
/// let mut w = Tensor::full(&cpu, &[1], 1.0)?;
/// let mut m = Tensor::zeros(&cpu, &[1])?;
/// let mut v = Tensor::zeros(&cpu, &[1])?;
/// let options = AdamWStep { lr: 0.25, weight_decay: 0.0, ..Default::default() };
/// adamw(&mut w, &mut m, &mut v, &grad, None, &options)?;
/// assert!((w.item()? - 0.75).abs() < 1e-6);
/// # Ok::<(), mixlora::Error>(())
/// ```
///
/// # Errors
/// The shapes differ, `factor` is not one number, or an option is out of its range. Nothing is changed then.
pub fn adamw(
    w: &mut Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    grad: &Tensor,
    factor: Option<&Tensor>,
    options: &AdamWStep,
) -> Result<()> {
    run_in_place(&Step(*options), [w, m, v], In { grad, factor })
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (dims, with_factor) in
        [(&[0, 3][..], true), (&[1], false), (&[3, 5], true), (&[3, 67], false), (&[70_001, 3], true)]
    {
        let n: usize = dims.iter().product();
        let Operand::Values { mut data, .. } = Operand::normal("v", dims) else {
            unreachable!("normal operands are values")
        };
        data.iter_mut().for_each(|v| *v *= *v);
        let input = |name| Operand::normal(name, dims).frozen();
        let mut inputs = vec![input("w"), input("m"), Operand::values(dims, data).frozen(), input("grad")];
        if with_factor {
            inputs.push(Operand::values(&[], vec![0.3]).frozen());
        }
        all.push(
            Case::new(format!("{dims:?} factor {with_factor}"), inputs, |x| {
                let mut w = x[0].detach();
                let mut m = x[1].detach();
                let mut v = x[2].detach();
                let mut o = AdamWStep { lr: 0.02, weight_decay: 0.1, grad_scale: 0.25, ..Default::default() };
                // The first step copies what the caller holds, the second works in place.
                for step in [3, 4] {
                    o.step = step;
                    adamw(&mut w, &mut m, &mut v, &x[3], x.get(4), &o)?;
                }
                Ok(vec![w, m, v])
            })
            .cost(30 * n, 56 * n),
        );
    }
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, d] = sizes.plane();
    let n = rows * d;
    let inputs = ["w", "m", "g"].map(|name| Operand::normal(name, &[rows, d]).frozen());
    let make = |_: &Device| -> Result<Computation> {
        let options = AdamWStep { step: 3, ..AdamWStep::default() };
        Ok(Box::new(move |x| {
            let mut w = x[0].detach();
            let mut m = x[1].detach();
            let mut v = x[2].mul(&x[2])?;
            adamw(&mut w, &mut m, &mut v, &x[2], None, &options)?;
            Ok(vec![w, m, v])
        }))
    };
    // The operands are shared, so the step copies w and m first: that is part of the bytes.
    vec![Timed::new(format!("{rows}x{d}"), inputs.into(), (16 * n, 52 * n), make)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn errors_change_nothing() {
        let cpu = Device::cpu();
        let full = |n: usize| Tensor::full(&cpu, &[n], 1.0).unwrap();
        let mut w = full(2).leaf();
        let mut m = full(2);
        let mut v = full(2);
        let good = AdamWStep::default();
        let bad = [
            AdamWStep { step: 0, ..good },
            AdamWStep { beta1: 1.0, ..good },
            AdamWStep { beta2: -0.1, ..good },
            AdamWStep { eps: 0.0, ..good },
            AdamWStep { lr: f64::NAN, ..good },
            AdamWStep { weight_decay: -1.0, ..good },
        ];
        for o in bad {
            assert!(adamw(&mut w, &mut m, &mut v, &full(2), None, &o).is_err(), "{o:?}");
        }
        assert!(adamw(&mut w, &mut m, &mut v, &full(3), None, &good).is_err());
        assert!(adamw(&mut w, &mut m, &mut v, &full(2), Some(&full(2)), &good).is_err());
        assert_eq!(w.to_f32().unwrap(), [1.0, 1.0]);
        adamw(&mut w, &mut m, &mut v, &full(2), None, &good).unwrap();
        assert!(w.requires_grad(), "a parameter stays one");
    }

    #[test]
    fn shared_memory_is_not_changed() {
        let zeros = || Tensor::zeros(&Device::reference(), &[1]).unwrap();
        let mut w = Tensor::full(&Device::reference(), &[1], 2.0).unwrap();
        let mut m = zeros();
        let mut v = zeros();
        let before = w.clone();
        let o = AdamWStep { lr: 0.1, weight_decay: 0.5, ..Default::default() };
        adamw(&mut w, &mut m, &mut v, &Tensor::full(&Device::reference(), &[1], -3.0).unwrap(), None, &o)
            .unwrap();
        assert_eq!(before.item().unwrap(), 2.0);
        // From zero moments the first step is lr in the direction of the gradient, after the decay.
        assert!((w.item().unwrap() - (2.0 * (1.0 - 0.05) + 0.1)).abs() < 1e-8);
    }

    #[test]
    fn three_steps_as_in_pytorch() {
        let scalar = |v: f64| Tensor::from_f64(&Device::reference(), &[], &[v]).unwrap();
        let mut w = scalar(1.5);
        let mut m = scalar(0.0);
        let mut v = scalar(0.0);
        for (step, grad) in [(1, 0.5), (2, -2.0), (3, 0.25)] {
            let o = AdamWStep { lr: 0.1, step, ..Default::default() };
            adamw(&mut w, &mut m, &mut v, &scalar(grad), None, &o).unwrap();
        }
        // PyTorch's update, in its order of operations, in f64 outside this crate.
        let want = [1.486839276004, -0.114500000000, 0.004308000250];
        for (t, want) in [w, m, v].iter().zip(want) {
            assert!((t.item().unwrap() - want).abs() < 1e-10, "{t:?}");
        }
    }
}
