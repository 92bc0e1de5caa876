//! Activations: SiLU, GELU in both forms, the logistic function, soft caps, and the gated units SwiGLU and GEGLU.

mod cases;
mod functions;
mod gated;

use functions::{Kind, exact, gelu, gelu_erf, sigmoid, silu, softcap};

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::launch::{Kernel, binds};
use crate::engine::{Meta, Op, OpSpec, Operands, launch, operands, run1};
use crate::simd::wide;
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "activation",
    formula: "silu, gelu, gelu_erf, sigmoid, cap tanh(x / cap), silu(gate) up, gelu(gate) up",
    shaders: &[&SHADER],
    cases: cases::cases,
    timed: cases::timed,
};

const fn variant(name: &'static str, consts: &'static [(&'static str, u32)]) -> Variant {
    Variant { name, consts, parts: &[parts::GRID, parts::SOFTCAP], backends: PORTABLE, workgroup_bytes: 0 }
}
const WG: (&str, u32) = ("WG", launch::WG as u32);
static VARIANTS: &[Variant] = &[
    variant("silu", &[WG, ("KIND", 0)]),
    variant("gelu", &[WG, ("KIND", 1)]),
    variant("gelu_erf", &[WG, ("KIND", 2)]),
    variant("sigmoid", &[WG, ("KIND", 3)]),
    variant("softcap", &[WG, ("KIND", 4)]),
];
/// Those that gate.
static GATES: &[Variant] = VARIANTS.split_at(2).0;
const NAME: &str = "activation";

params! {
    struct Params { n: u32, cap: f32 }
}

static SHADER: Shader = Shader {
    name: "activation",
    source: include_str!("../../../shaders/activation.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "forward", variants: VARIANTS },
        Entry { name: "backward", variants: VARIANTS },
        Entry { name: "gated", variants: GATES },
        Entry { name: "gated_backward", variants: GATES },
    ],
};

/// Elements of one parallel task.
const CHUNK: usize = 1 << 12;

impl Kind {
    /// Its variant, by the shader's `KIND`.
    fn variant(self) -> &'static Variant {
        match self {
            Kind::Silu => &VARIANTS[0],
            Kind::Gelu => &VARIANTS[1],
            Kind::GeluErf => &VARIANTS[2],
            Kind::Sigmoid => &VARIANTS[3],
            Kind::Softcap(_) => &VARIANTS[4],
        }
    }
}

operands! {
    struct In { x }
}

operands! {
    struct BackwardIn { x, dy }
}

/// `x -> f(x)`
struct Forward(Kind);
/// `(x, dy) -> f'(x) dy`
struct Backward(Kind);
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
        return Err(Error::shape(NAME, format!("all of shape {}", all[0].shape()), other.shape()));
    }
    Ok([(); N].map(|()| Meta::like(all[0])))
}

fn launch<'a>(
    gpu: &Gpu,
    entry: &'static str,
    kind: Kind,
    x: &impl Operands<'a>,
    y: &'a [Tensor],
) -> Result<()> {
    let n = y[0].len();
    let cap = if let Kind::Softcap(cap) = kind { cap } else { 0.0 };
    let kernel = Kernel { shader: &SHADER, entry, variant: kind.variant() };
    kernel.run(gpu, &binds(x, y), &Params { n: n as u32, cap }, n.div_ceil(launch::WG), 20 * n)
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
            Kind::Softcap(cap) => map(y, x, |x| softcap(x, cap).0),
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch(gpu, "forward", self.0, x, y)
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
            Kind::Softcap(cap) => map_pairs(dx, x, dy, |x, dy| softcap(x, cap).1 * dy),
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &BackwardIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch(gpu, "backward", self.0, x, y)
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

    /// `cap * tanh(self / cap)`, element by element: values stay within the cap, and small ones pass almost unchanged
    /// (logits of Gemma 2, arXiv:2408.00118). Derivative `1 - tanh^2(self / cap)`.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let logits = Tensor::from_f32(&Device::cpu(), &[3], &[-1e6, 0.0, 1e6])?;
    /// assert_eq!(logits.softcap(30.0)?.to_f32()?, [-30.0, 0.0, 30.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The cap is not a positive number.
    pub fn softcap(&self, cap: f32) -> Result<Tensor> {
        check_cap("softcap", cap)?;
        self.activation("softcap", Kind::Softcap(cap))
    }
}

/// Refuses what caps nothing, or everything.
pub(super) fn check_cap(field: &str, cap: f32) -> Result<()> {
    if cap.is_finite() && cap > 0.0 {
        return Ok(());
    }
    Err(Error::config(field, cap, "a positive number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_shapes_are_errors() {
        let zeros = |n: usize| Tensor::zeros(&crate::Device::cpu(), &[n]).unwrap();
        assert!(zeros(2).swiglu(&zeros(3)).is_err());
        assert!(zeros(2).geglu(&zeros(3)).is_err());
        let error = zeros(2).softcap(-1.0).unwrap_err().to_string();
        assert_eq!(error, "softcap: is -1, must be a positive number");
    }
}
