//! Activations: SiLU, GELU in both forms, the logistic function, and SwiGLU.

use crate::device::{Entry, Host, PORTABLE, Shader, Variant, parts};
#[cfg(feature = "gpu")]
use crate::engine::launch::{Kernel, binds};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, cpu::math, launch, run};
use crate::simd::{Target, wide};
use crate::tape::{Node, recording};
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "activation",
    formula: "silu, gelu, gelu_erf, sigmoid, silu(gate) up",
    shaders: &[&SHADER],
    cases,
};

const fn variant(name: &'static str, consts: &'static [(&'static str, u32)]) -> Variant {
    Variant { name, consts, parts: &[parts::GRID], backends: PORTABLE, workgroup_bytes: 0 }
}
const WG: (&str, u32) = ("WG", launch::WG as u32);
static VARIANTS: &[Variant] = &[
    variant("silu", &[WG, ("KIND", 0)]),
    variant("gelu", &[WG, ("KIND", 1)]),
    variant("gelu_erf", &[WG, ("KIND", 2)]),
    variant("sigmoid", &[WG, ("KIND", 3)]),
];
static SWIGLU: &[Variant] = &[variant("swiglu", &[WG, ("KIND", 0)])];
static SHADER: Shader = Shader {
    name: "activation",
    source: include_str!("../../shaders/activation.wgsl"),
    entries: &[
        Entry { name: "forward", variants: VARIANTS },
        Entry { name: "backward", variants: VARIANTS },
        Entry { name: "swiglu", variants: SWIGLU },
        Entry { name: "swiglu_backward", variants: SWIGLU },
    ],
};

/// Elements of one parallel task.
const CHUNK: usize = 1 << 12;

/// In the order of the shader's `KIND`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Silu,
    Gelu,
    GeluErf,
    Sigmoid,
}

#[derive(Debug, Clone, Copy)]
enum Activation {
    /// `x -> f(x)`
    Forward(Kind),
    /// `(x, dy) -> f'(x) dy`
    Backward(Kind),
    /// `(gate, up) -> silu(gate) up`
    Swiglu,
    /// `(gate, up, dy) -> (dgate, dup)`
    SwigluBackward,
}

/// `(f(x), f'(x))`
fn exact(kind: Kind, x: f64) -> (f64, f64) {
    use std::f64::consts::{FRAC_1_SQRT_2, PI};
    let s = 1.0 / (1.0 + (-x).exp());
    match kind {
        Kind::Sigmoid => (s, s * (1.0 - s)),
        Kind::Silu => (x * s, s + x * s * (1.0 - s)),
        Kind::Gelu => {
            let c = (2.0 / PI).sqrt();
            let t = (c * (x + 0.044715 * x.powi(3))).tanh();
            let slope = c * (1.0 + 3.0 * 0.044715 * x * x);
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
        }
        Kind::GeluErf => {
            let phi = 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2));
            (x * phi, phi + x * (-0.5 * x * x).exp() / (2.0 * PI).sqrt())
        }
    }
}

/// `2/sqrt(pi) e^(-x^2) sum_n 2^n x^(2n+1) / (2n+1)!!`: all terms have one sign, so nothing cancels.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 || x.is_nan() {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp()
}

// `(f(x), f'(x))` in f32, by the formulas of the shader. Functions of their own, so that the loops around them are
// compiled for each and vectorised.

#[inline(always)]
fn sigmoid(x: f32) -> (f32, f32) {
    let s = math::sigmoid(x);
    (s, s * (1.0 - s))
}

#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let s = math::sigmoid(x);
    (x * s, s + x * s * (1.0 - s))
}

#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    let (c, b) = (1.595_769_2, x.clamp(-10.0, 10.0));
    let s = math::sigmoid(c * b * (0.044715 * b * b + 1.0));
    (x * s, s + b * s * (1.0 - s) * c * (3.0 * 0.044715 * b * b + 1.0))
}

#[inline(always)]
fn gelu_erf(x: f32) -> (f32, f32) {
    let a = x.abs().min(13.0);
    let e = math::exp::<Target>(-0.5 * a * a);
    // Abramowitz & Stegun 7.1.26 at a / sqrt(2).
    let t = 1.0 / (0.231_641_89 * a + 1.0);
    let q = (((1.061_405_4 * t - 1.453_152) * t + 1.421_413_8) * t - 0.284_496_73) * t + 0.254_829_6;
    let tail = 0.5 * q * t * e;
    let phi = if x >= 0.0 { 1.0 - tail } else { tail };
    (x * phi, phi + x.clamp(-13.0, 13.0) * e * 0.398_942_3)
}

/// `y = f(x)` of one input, or of two.
fn each(x: &[&[f32]], y: &mut [f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    let tasks = y.par_chunks_mut(CHUNK).zip(x[0].par_chunks(CHUNK));
    match x.get(1) {
        None => tasks.for_each(|(y, x)| wide(|| y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x, 0.0)))),
        Some(b) => tasks.zip(b.par_chunks(CHUNK)).for_each(|((y, x), b)| {
            wide(|| y.iter_mut().zip(x.iter().zip(b)).for_each(|(y, (&x, &b))| *y = f(x, b)));
        }),
    }
}

fn swiglu_backward(x: [&[f32]; 3], y: &mut [Host]) {
    let [dgate, dup] = y else { unreachable!("outputs are as inferred") };
    let tasks = dgate.f32_mut().par_chunks_mut(CHUNK).zip(dup.f32_mut().par_chunks_mut(CHUNK));
    tasks.enumerate().for_each(|(c, (dgate, dup))| {
        let [gate, up, dy] = x.map(|v| &v[c * CHUNK..][..dgate.len()]);
        wide(|| {
            let outputs = dgate.iter_mut().zip(dup);
            for ((dgate, dup), ((gate, up), dy)) in outputs.zip(gate.iter().zip(up).zip(dy)) {
                let (value, slope) = silu(*gate);
                *dgate = slope * up * dy;
                *dup = value * dy;
            }
        });
    });
}

impl Op for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        x.iter().try_for_each(|t| t.expect(self.name(), DType::F32))?;
        if let Some(t) = x.iter().find(|t| t.shape() != x[0].shape()) {
            let what = format!("{} with {}: shapes must agree", x[0].shape(), t.shape());
            return Err(Error::shape(self.name(), what));
        }
        let outputs = if matches!(self, Activation::SwigluBackward) { 2 } else { 1 };
        Ok(vec![Meta::like(x[0]); outputs])
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        for i in 0..x[0].len() {
            let at = |k: usize| x[k].f64()[i];
            match *self {
                Activation::Forward(kind) => y[0].f64_mut()[i] = exact(kind, at(0)).0,
                Activation::Backward(kind) => y[0].f64_mut()[i] = exact(kind, at(0)).1 * at(1),
                Activation::Swiglu => y[0].f64_mut()[i] = exact(Kind::Silu, at(0)).0 * at(1),
                Activation::SwigluBackward => {
                    let (value, slope) = exact(Kind::Silu, at(0));
                    y[0].f64_mut()[i] = slope * at(1) * at(2);
                    y[1].f64_mut()[i] = value * at(2);
                }
            }
        }
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        use Activation::*;
        let x: Vec<&[f32]> = x.iter().map(|t| t.f32()).collect();
        if let SwigluBackward = self {
            return swiglu_backward([x[0], x[1], x[2]], y);
        }
        let y = y[0].f32_mut();
        match self {
            Forward(Kind::Silu) => each(&x, y, |x, _| silu(x).0),
            Forward(Kind::Gelu) => each(&x, y, |x, _| gelu(x).0),
            Forward(Kind::GeluErf) => each(&x, y, |x, _| gelu_erf(x).0),
            Forward(Kind::Sigmoid) => each(&x, y, |x, _| sigmoid(x).0),
            Backward(Kind::Silu) => each(&x, y, |x, dy| silu(x).1 * dy),
            Backward(Kind::Gelu) => each(&x, y, |x, dy| gelu(x).1 * dy),
            Backward(Kind::GeluErf) => each(&x, y, |x, dy| gelu_erf(x).1 * dy),
            Backward(Kind::Sigmoid) => each(&x, y, |x, dy| sigmoid(x).1 * dy),
            Swiglu | SwigluBackward => each(&x, y, |gate, up| silu(gate).0 * up),
        }
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        let (entry, variant) = match *self {
            Activation::Forward(kind) => ("forward", &VARIANTS[kind as usize]),
            Activation::Backward(kind) => ("backward", &VARIANTS[kind as usize]),
            Activation::Swiglu => ("swiglu", &SWIGLU[0]),
            Activation::SwigluBackward => ("swiglu_backward", &SWIGLU[0]),
        };
        let n = y[0].len();
        let kernel = Kernel { shader: &SHADER, entry, variant };
        kernel.run(gpu, &binds(x, y), &[n as u32], n.div_ceil(launch::WG), 20 * n)
    }
}

impl Tensor {
    fn activation(&self, name: &'static str, kind: Kind) -> Result<Tensor> {
        let y = run(&Activation::Forward(kind), &[self])?.swap_remove(0);
        let x = recording(&[self]).then(|| self.detach());
        Ok(Node::record(name, &[self], y, move |dy| {
            let x = x.expect("kept while recording");
            Ok(vec![Some(run(&Activation::Backward(kind), &[&x, &dy])?.swap_remove(0))])
        }))
    }

    /// `x / (1 + e^-x)`, element by element (Elfwing et al. 2017, arXiv:1702.03118).
    pub fn silu(&self) -> Result<Tensor> {
        self.activation("silu", Kind::Silu)
    }

    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`: the form of GPT-2, `gelu_new` in Hugging Face
    /// (Hendrycks & Gimpel 2016, arXiv:1606.08415).
    pub fn gelu(&self) -> Result<Tensor> {
        self.activation("gelu", Kind::Gelu)
    }

    /// `x/2 (1 + erf(x / sqrt 2))`: the exact form, `gelu` in PyTorch (arXiv:1606.08415).
    pub fn gelu_erf(&self) -> Result<Tensor> {
        self.activation("gelu_erf", Kind::GeluErf)
    }

    /// `1 / (1 + e^-x)`, element by element.
    pub fn sigmoid(&self) -> Result<Tensor> {
        self.activation("sigmoid", Kind::Sigmoid)
    }

    /// `silu(self) * up`: the gated unit of Llama-like models, `self` is the gate (Shazeer 2020,
    /// arXiv:2002.05202).
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let cpu = Device::cpu();
    /// let gate = Tensor::from_f32(&cpu, &[2], &[0.0, 50.0])?;
    /// let up = Tensor::from_f32(&cpu, &[2], &[3.0, 2.0])?;
    /// assert_eq!(gate.swiglu(&up)?.to_f32()?, [0.0, 100.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The shapes differ.
    pub fn swiglu(&self, up: &Tensor) -> Result<Tensor> {
        let y = run(&Activation::Swiglu, &[self, up])?.swap_remove(0);
        let (gate, up_value) = (self.detach(), up.detach());
        let again = {
            let (gate, up) = (gate.clone(), up_value.clone());
            move || Ok(run(&Activation::Swiglu, &[&gate, &up])?.swap_remove(0))
        };
        let (need_gate, need_up) = (self.requires_grad(), up.requires_grad());
        Ok(Node::record_again("swiglu", &[self, up], y, again, move |dy| {
            let mut d = run(&Activation::SwigluBackward, &[&gate, &up_value, &dy])?;
            let (dup, dgate) = (d.swap_remove(1), d.swap_remove(0));
            Ok(vec![need_gate.then_some(dgate), need_up.then_some(dup)])
        }))
    }
}

fn cases() -> Vec<Case> {
    type F = fn(&Tensor) -> Result<Tensor>;
    let kinds: [(&str, F); 4] = [
        ("silu", Tensor::silu),
        ("gelu", Tensor::gelu),
        ("gelu_erf", Tensor::gelu_erf),
        ("sigmoid", Tensor::sigmoid),
    ];
    let mut all = Vec::new();
    for (dims, spread) in
        [(&[0, 4][..], 1.0), (&[1], 1.0), (&[3, 5], 3.0), (&[7, 301], 1.0), (&[70_000, 3], 40.0)]
    {
        let n: usize = dims.iter().product();
        let x = |name| Operand::normal(name, dims).times(spread);
        for (name, f) in kinds {
            let label = format!("{name} {dims:?} x {spread}");
            all.push(Case::new(label, vec![x("x")], move |x| Ok(vec![f(&x[0])?])).cost(10 * n, 8 * n));
        }
        let inputs = vec![x("gate"), x("up")];
        let label = format!("swiglu {dims:?} x {spread}");
        all.push(Case::new(label, inputs, |x| Ok(vec![x[0].swiglu(&x[1])?])).cost(11 * n, 12 * n));
    }
    let inputs = vec![Operand::normal("gate", &[6]), Operand::normal("up", &[6]).frozen()];
    all.push(Case::new("swiglu, frozen up", inputs, |x| Ok(vec![x[0].swiglu(&x[1])?])));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // From the C library's exp, tanh and erfc.
        let x = [-3.1, -0.4, 0.7, 5.5];
        let want = [
            (Kind::Silu, [-0.133632490317, -0.160524935955, 0.467731440518, 5.477614242563]),
            (Kind::Gelu, [-0.002626610231, -0.137838830573, 0.530570134705, 5.499999994072]),
            (Kind::GeluErf, [-0.002999569961, -0.137831303356, 0.530625443444, 5.499999895557]),
        ];
        for (kind, want) in want {
            for (x, want) in x.into_iter().zip(want) {
                assert!((exact(kind, x).0 - want).abs() < 1e-11, "{kind:?} {x}");
            }
        }
    }

    #[test]
    fn different_shapes_are_errors() {
        let zeros = |n: usize| Tensor::zeros(&crate::Device::cpu(), &[n]).unwrap();
        assert!(zeros(2).swiglu(&zeros(3)).is_err());
    }
}
