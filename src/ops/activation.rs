//! Activations: SiLU, GELU in both forms, the logistic function, and SwiGLU.

#[cfg(feature = "gpu")]
use super::launch::{Kernel, binds};
use super::{Case, Meta, Op, OpSpec, Operand, launch, math, run};
use crate::device::{Entry, Host, PORTABLE, Shader, Variant, parts};
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

/// `x -> f(x)`
struct Forward(Kind);
/// `(x, dy) -> f'(x) dy`
struct Backward(Kind);
/// `(gate, up) -> silu(gate) up`
struct Swiglu;
/// `(gate, up, dy) -> (dgate, dup)`
struct SwigluBackward;

impl Kind {
    /// `(f(x), f'(x))`
    fn exact(self, x: f64) -> (f64, f64) {
        use std::f64::consts::{FRAC_1_SQRT_2, PI};
        let s = 1.0 / (1.0 + (-x).exp());
        match self {
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

    /// The same in f32, by the formulas of the shader.
    #[inline(always)]
    fn fast(self, x: f32) -> (f32, f32) {
        match self {
            Kind::Sigmoid => {
                let s = math::sigmoid(x);
                (s, s * (1.0 - s))
            }
            Kind::Silu => {
                let s = math::sigmoid(x);
                (x * s, s + x * s * (1.0 - s))
            }
            Kind::Gelu => {
                let (c, b) = (1.595_769_1, x.clamp(-10.0, 10.0));
                let s = math::sigmoid(c * b * (0.044715 * b * b + 1.0));
                (x * s, s + b * s * (1.0 - s) * c * (3.0 * 0.044715 * b * b + 1.0))
            }
            Kind::GeluErf => {
                let a = x.abs().min(13.0);
                let e = math::exp(-0.5 * a * a);
                // Abramowitz & Stegun 7.1.26 at a / sqrt(2).
                let t = 1.0 / (0.231_641_89 * a + 1.0);
                let q =
                    (((1.061_405_4 * t - 1.453_152) * t + 1.421_413_8) * t - 0.284_496_73) * t + 0.254_829_6;
                let tail = 0.5 * q * t * e;
                let (phi, a) = if x >= 0.0 { (1.0 - tail, a) } else { (tail, -a) };
                (x * phi, phi + a * e * 0.398_942_3)
            }
        }
    }

    /// Calls `f` with this function as a type of its own, so that the loop around it is vectorised.
    fn loops(self, x: &[f32], y: &mut [f32], f: impl Fn((f32, f32), f32, usize) -> f32 + Copy + Sync) {
        fn go(
            x: &[f32],
            y: &mut [f32],
            pair: impl Fn(f32) -> (f32, f32) + Sync,
            f: impl Fn((f32, f32), f32, usize) -> f32 + Sync,
        ) {
            y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate().for_each(|(c, (y, x))| {
                y.iter_mut().zip(x).enumerate().for_each(|(i, (y, &x))| *y = f(pair(x), x, c * CHUNK + i))
            })
        }
        match self {
            Kind::Silu => go(x, y, |v| Kind::Silu.fast(v), f),
            Kind::Gelu => go(x, y, |v| Kind::Gelu.fast(v), f),
            Kind::GeluErf => go(x, y, |v| Kind::GeluErf.fast(v), f),
            Kind::Sigmoid => go(x, y, |v| Kind::Sigmoid.fast(v), f),
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

fn same_shape(op: &'static str, x: &[&Tensor]) -> Result<()> {
    x.iter().try_for_each(|t| t.expect(op, DType::F32))?;
    match x.iter().find(|t| t.shape() != x[0].shape()) {
        None => Ok(()),
        Some(t) => Err(Error::shape(op, format!("{} with {}: shapes must agree", x[0].shape(), t.shape()))),
    }
}

#[cfg(feature = "gpu")]
fn launch(
    gpu: &crate::device::Gpu,
    entry: &'static str,
    variant: &'static Variant,
    x: &[&Tensor],
    y: &[Tensor],
) -> Result<()> {
    let n = y[0].len();
    let kernel = Kernel { shader: &SHADER, entry, variant };
    kernel.run(gpu, &binds(x, y), &[n as u32], n.div_ceil(launch::WG), 20 * n)
}

impl Op for Forward {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        same_shape(self.name(), x)?;
        Ok(vec![Meta::like(x[0])])
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        y[0].f64_mut().iter_mut().zip(x[0].f64()).for_each(|(y, &x)| *y = self.0.exact(x).0);
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        self.0.loops(x[0].f32(), y[0].f32_mut(), |pair, _, _| pair.0);
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        launch(gpu, "forward", &VARIANTS[self.0 as usize], x, y)
    }
}

impl Op for Backward {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        same_shape(self.name(), x)?;
        Ok(vec![Meta::like(x[0])])
    }

    fn reference(&self, x: &[&Tensor], dx: &mut [Host]) {
        let (x, dy) = (x[0].f64(), x[1].f64());
        for (i, dx) in dx[0].f64_mut().iter_mut().enumerate() {
            *dx = self.0.exact(x[i]).1 * dy[i];
        }
    }

    fn cpu(&self, x: &[&Tensor], dx: &mut [Host]) {
        let dy = x[1].f32();
        self.0.loops(x[0].f32(), dx[0].f32_mut(), |pair, _, i| pair.1 * dy[i]);
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        launch(gpu, "backward", &VARIANTS[self.0 as usize], x, y)
    }
}

impl Op for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        same_shape(self.name(), x)?;
        Ok(vec![Meta::like(x[0])])
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let (gate, up) = (x[0].f64(), x[1].f64());
        for (i, y) in y[0].f64_mut().iter_mut().enumerate() {
            *y = Kind::Silu.exact(gate[i]).0 * up[i];
        }
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        let up = x[1].f32();
        Kind::Silu.loops(x[0].f32(), y[0].f32_mut(), |pair, _, i| pair.0 * up[i]);
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        launch(gpu, "swiglu", &SWIGLU[0], x, y)
    }
}

impl Op for SwigluBackward {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        same_shape(self.name(), x)?;
        Ok(vec![Meta::like(x[0]), Meta::like(x[0])])
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let (gate, up, dy) = (x[0].f64(), x[1].f64(), x[2].f64());
        for i in 0..gate.len() {
            let (value, slope) = Kind::Silu.exact(gate[i]);
            y[0].f64_mut()[i] = slope * up[i] * dy[i];
            y[1].f64_mut()[i] = value * dy[i];
        }
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        let (gate, up, dy) = (x[0].f32(), x[1].f32(), x[2].f32());
        let [dgate, dup] = y else { unreachable!() };
        let tasks = dgate.f32_mut().par_chunks_mut(CHUNK).zip(dup.f32_mut().par_chunks_mut(CHUNK));
        tasks.enumerate().for_each(|(c, (dgate, dup))| {
            let (n, at) = (dgate.len(), c * CHUNK);
            let (gate, up, dy) = (&gate[at..][..n], &up[at..][..n], &dy[at..][..n]);
            for i in 0..n {
                let (value, slope) = Kind::Silu.fast(gate[i]);
                dgate[i] = slope * up[i] * dy[i];
                dup[i] = value * dy[i];
            }
        });
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        launch(gpu, "swiglu_backward", &SWIGLU[0], x, y)
    }
}

impl Tensor {
    fn activation(&self, name: &'static str, kind: Kind) -> Result<Tensor> {
        let y = run(&Forward(kind), &[self])?.swap_remove(0);
        let x = recording(&[self]).then(|| self.detach());
        Ok(Node::record(name, &[self], y, move |dy| {
            let x = x.expect("kept while recording");
            Ok(vec![Some(run(&Backward(kind), &[&x, &dy])?.swap_remove(0))])
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
        let y = run(&Swiglu, &[self, up])?.swap_remove(0);
        let kept = recording(&[self, up]).then(|| (self.detach(), up.detach()));
        let (need_gate, need_up) = (self.requires_grad(), up.requires_grad());
        Ok(Node::record("swiglu", &[self, up], y, move |dy| {
            let (gate, up) = kept.expect("kept while recording");
            let mut d = run(&SwigluBackward, &[&gate, &up, &dy])?;
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
