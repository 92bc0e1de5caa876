//! Activations: SiLU, GELU in both forms, the logistic function, and SwiGLU.

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, parts};
use crate::engine::launch::{Kernel, binds};
use crate::engine::{
    Case, Meta, Op, OpSpec, Operand, Operands, Timed, TimedSizes, cpu::math, launch, operands, run, run1,
};
use crate::simd::{Target, wide};
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "activation",
    formula: "silu, gelu, gelu_erf, sigmoid, silu(gate) up",
    shaders: &[&SHADER],
    cases,
    timed,
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
const NAME: &str = "activation";
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

operands! {
    struct In { x }
}

operands! {
    struct BackwardIn { x, dy }
}

operands! {
    struct Gated { gate, up }
}

operands! {
    struct GatedBackward { gate, up, dy }
}

/// `x -> f(x)`
struct Forward(Kind);
/// `(x, dy) -> f'(x) dy`
struct Backward(Kind);
/// `(gate, up) -> silu(gate) up`
struct Swiglu;
/// `(gate, up, dy) -> (dgate, dup)`
struct SwigluBackward;

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
    let mut term = x;
    let mut sum = x;
    let mut n = 0.0;
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
    let c = 1.595_769_2;
    let b = x.clamp(-10.0, 10.0);
    let s = math::sigmoid(c * b * (0.044715 * b * b + 1.0));
    (x * s, s + b * s * (1.0 - s) * c * (3.0 * 0.044715 * b * b + 1.0))
}

#[inline(always)]
fn gelu_erf(x: f32) -> (f32, f32) {
    let a = x.abs().min(13.0);
    let e = math::exp(Target, -0.5 * a * a);
    // Abramowitz & Stegun 7.1.26 at a / sqrt(2).
    let t = 1.0 / (0.231_641_89 * a + 1.0);
    let q = (((1.061_405_4 * t - 1.453_152) * t + 1.421_413_8) * t - 0.284_496_73) * t + 0.254_829_6;
    let tail = 0.5 * q * t * e;
    let phi = if x >= 0.0 { 1.0 - tail } else { tail };
    (x * phi, phi + x.clamp(-13.0, 13.0) * e * 0.398_942_3)
}

/// `y = f(x)`
fn map(y: &mut Host, x: &Tensor, f: impl Fn(f32) -> f32 + Sync) {
    let tasks = y.f32_mut().par_chunks_mut(CHUNK).zip(x.f32().par_chunks(CHUNK));
    tasks.for_each(|(y, x)| wide(|| y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x))));
}

/// `y = f(a, b)`
fn map_pairs(y: &mut Host, a: &Tensor, b: &Tensor, f: impl Fn(f32, f32) -> f32 + Sync) {
    let inputs = a.f32().par_chunks(CHUNK).zip(b.f32().par_chunks(CHUNK));
    y.f32_mut().par_chunks_mut(CHUNK).zip(inputs).for_each(|(y, (a, b))| {
        wide(|| y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (&a, &b))| *y = f(a, b)));
    });
}

/// Outputs like the first input, which all others must be like too.
fn alike<'a, const N: usize>(x: &impl Operands<'a>) -> Result<[Meta; N]> {
    x.require(NAME, DType::F32)?;
    let all = x.all();
    if let Some(other) = all.iter().find(|t| t.shape() != all[0].shape()) {
        let what = format!("{} with {}: shapes must agree", all[0].shape(), other.shape());
        return Err(Error::shape(NAME, what));
    }
    Ok([(); N].map(|()| Meta::like(all[0])))
}

fn launch<'a>(
    gpu: &Gpu,
    entry: &'static str,
    variant: &'static Variant,
    x: &impl Operands<'a>,
    y: &'a [Tensor],
) -> Result<()> {
    let n = y[0].len();
    let kernel = Kernel { shader: &SHADER, entry, variant };
    kernel.run(gpu, &binds(x, y), &[n as u32], n.div_ceil(launch::WG), 20 * n)
}

impl Op for Forward {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &In<'_>) -> Result<[Meta; 1]> {
        alike(x)
    }

    fn reference(&self, &In { x }: &In<'_>, [y]: [&mut Host; 1]) {
        y.f64_mut().iter_mut().zip(x.f64()).for_each(|(y, x)| *y = exact(self.0, *x).0);
    }

    fn cpu(&self, &In { x }: &In<'_>, [y]: [&mut Host; 1]) {
        match self.0 {
            Kind::Silu => map(y, x, |x| silu(x).0),
            Kind::Gelu => map(y, x, |x| gelu(x).0),
            Kind::GeluErf => map(y, x, |x| gelu_erf(x).0),
            Kind::Sigmoid => map(y, x, |x| sigmoid(x).0),
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch(gpu, "forward", &VARIANTS[self.0 as usize], x, y)
    }
}

impl Op for Backward {
    type In<'a> = BackwardIn<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &BackwardIn<'_>) -> Result<[Meta; 1]> {
        alike(x)
    }

    fn reference(&self, &BackwardIn { x, dy }: &BackwardIn<'_>, [dx]: [&mut Host; 1]) {
        let inputs = x.f64().iter().zip(dy.f64());
        dx.f64_mut().iter_mut().zip(inputs).for_each(|(dx, (x, dy))| *dx = exact(self.0, *x).1 * dy);
    }

    fn cpu(&self, &BackwardIn { x, dy }: &BackwardIn<'_>, [dx]: [&mut Host; 1]) {
        match self.0 {
            Kind::Silu => map_pairs(dx, x, dy, |x, dy| silu(x).1 * dy),
            Kind::Gelu => map_pairs(dx, x, dy, |x, dy| gelu(x).1 * dy),
            Kind::GeluErf => map_pairs(dx, x, dy, |x, dy| gelu_erf(x).1 * dy),
            Kind::Sigmoid => map_pairs(dx, x, dy, |x, dy| sigmoid(x).1 * dy),
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &BackwardIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch(gpu, "backward", &VARIANTS[self.0 as usize], x, y)
    }
}

impl Op for Swiglu {
    type In<'a> = Gated<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &Gated<'_>) -> Result<[Meta; 1]> {
        alike(x)
    }

    fn reference(&self, &Gated { gate, up }: &Gated<'_>, [y]: [&mut Host; 1]) {
        let inputs = gate.f64().iter().zip(up.f64());
        y.f64_mut().iter_mut().zip(inputs).for_each(|(y, (gate, up))| *y = exact(Kind::Silu, *gate).0 * up);
    }

    fn cpu(&self, &Gated { gate, up }: &Gated<'_>, [y]: [&mut Host; 1]) {
        map_pairs(y, gate, up, |gate, up| silu(gate).0 * up);
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &Gated<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch(gpu, "swiglu", &SWIGLU[0], x, y)
    }
}

impl Op<2> for SwigluBackward {
    type In<'a> = GatedBackward<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &GatedBackward<'_>) -> Result<[Meta; 2]> {
        alike(x)
    }

    fn reference(&self, x: &GatedBackward<'_>, [dgate, dup]: [&mut Host; 2]) {
        for (i, dy) in x.dy.f64().iter().enumerate() {
            let (value, slope) = exact(Kind::Silu, x.gate.f64()[i]);
            dgate.f64_mut()[i] = slope * x.up.f64()[i] * dy;
            dup.f64_mut()[i] = value * dy;
        }
    }

    fn cpu(&self, x: &GatedBackward<'_>, [dgate, dup]: [&mut Host; 2]) {
        let inputs = [x.gate, x.up, x.dy].map(|t| t.f32());
        let tasks = dgate.f32_mut().par_chunks_mut(CHUNK).zip(dup.f32_mut().par_chunks_mut(CHUNK));
        tasks.enumerate().for_each(|(c, (dgate, dup))| {
            let [gate, up, dy] = inputs.map(|v| &v[c * CHUNK..][..dgate.len()]);
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

    fn gpu(&self, gpu: &Arc<Gpu>, x: &GatedBackward<'_>, y: &[Tensor; 2]) -> Result<()> {
        launch(gpu, "swiglu_backward", &SWIGLU[0], x, y)
    }
}

impl Tensor {
    fn activation(&self, name: &'static str, kind: Kind) -> Result<Tensor> {
        let y = run1(&Forward(kind), In { x: self })?;
        let x = self.detach();
        Ok(Node::record(name, &[self], y, move |dy| {
            Ok(vec![Some(run1(&Backward(kind), BackwardIn { x: &x, dy: &dy })?)])
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
        let y = run1(&Swiglu, Gated { gate: self, up })?;
        let gate = self.detach();
        let up_value = up.detach();
        let again = {
            let gate = gate.clone();
            let up = up_value.clone();
            move || run1(&Swiglu, Gated { gate: &gate, up: &up })
        };
        let need_gate = self.requires_grad();
        let need_up = up.requires_grad();
        Ok(Node::record_again("swiglu", &[self, up], y, again, move |dy| {
            let inputs = GatedBackward { gate: &gate, up: &up_value, dy: &dy };
            let [dgate, dup] = run(&SwigluBackward, inputs)?;
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

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, d] = sizes.plane();
    let n = rows * d;
    let inputs = ["gate", "up"].map(|name| Operand::normal(name, &[rows, d])).into();
    let swiglu = Timed::plain(format!("swiglu {rows}x{d}"), inputs, (11 * n, 12 * n), |x| x[0].swiglu(&x[1]));
    vec![swiglu.backward(20 * n, 20 * n)]
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
