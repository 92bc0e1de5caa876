//! Functions of each element: SiLU, GELU in three forms, ReLU with a bound or without, softplus, the logistic function, soft caps, exponentials,
//! logarithms and powers; and the gated units SwiGLU and GEGLU.

mod cases;
mod functions;
mod gated;
mod tensor;

use functions::*;

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::launch::{Kernel, binds};
use crate::engine::{Meta, Op, OpSpec, Operands, launch, operands};
use crate::simd::vectorised;
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "activation",
    formula: "silu, gelu, gelu_erf, quick_gelu, sigmoid, cap tanh(x / cap), e^x, ln(x + shift), relu, relu6, softplus, \
              (x + shift)^exponent, silu(gate) up, gelu(gate) up",
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
    variant("exp", &[WG, ("KIND", 5)]),
    variant("log", &[WG, ("KIND", 6)]),
    variant("relu", &[WG, ("KIND", 7)]),
    variant("softplus", &[WG, ("KIND", 8)]),
    variant("power", &[WG, ("KIND", 9)]),
    variant("quick_gelu", &[WG, ("KIND", 10)]),
    variant("relu6", &[WG, ("KIND", 11)]),
];
/// Those that gate.
static GATES: &[Variant] = VARIANTS.split_at(2).0;
const NAME: &str = "activation";

params! {
    struct Params { n: u32, cap: f32, shift: f32, exponent: f32 }
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
            Kind::Exp => &VARIANTS[5],
            Kind::Log { .. } => &VARIANTS[6],
            Kind::Relu => &VARIANTS[7],
            Kind::Softplus => &VARIANTS[8],
            Kind::Power { .. } => &VARIANTS[9],
            Kind::QuickGelu => &VARIANTS[10],
            Kind::Relu6 => &VARIANTS[11],
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

// These loops are compiled for each set of instructions. `simd::wide` calls its closure from several places, and the
// compiler inlines no large function there.

vectorised! {
    /// `y = f(x)`
    fn values(kind: Kind, x: &[f32], y: &mut [f32]) {
        with_function!(kind, f => y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x).0));
    }
}

vectorised! {
    /// `dx = f'(x) dy`
    fn slopes(kind: Kind, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        with_function!(kind, f => {
            dx.iter_mut().zip(x.iter().zip(dy)).for_each(|(dx, (&x, dy))| *dx = f(x).1 * dy)
        });
    }
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
    let mut params = Params { n: n as u32, cap: 0.0, shift: 0.0, exponent: 0.0 };
    match kind {
        Kind::Softcap(cap) => params.cap = cap,
        Kind::Log { shift } => params.shift = shift,
        Kind::Power { exponent, shift } => {
            params.exponent = exponent;
            params.shift = shift;
        }
        _ => {}
    }
    let kernel = Kernel { shader: &SHADER, entry, variant: kind.variant() };
    kernel.run(gpu, &binds(x, y), &params, n.div_ceil(launch::WG), 20 * n)
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
        let tasks = y.f32_mut().par_chunks_mut(CHUNK).zip(x.f32().par_chunks(CHUNK));
        tasks.for_each(|(y, x)| values(self.0, x, y));
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
        let inputs = x.f32().par_chunks(CHUNK).zip(dy.f32().par_chunks(CHUNK));
        let tasks = dx.f32_mut().par_chunks_mut(CHUNK).zip(inputs);
        tasks.for_each(|(dx, (x, dy))| slopes(self.0, x, dy, dx));
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &BackwardIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch(gpu, "backward", self.0, x, y)
    }
}

/// Refuses what caps nothing, or everything.
pub(super) fn check_cap(field: &str, cap: f32) -> Result<()> {
    if cap.is_finite() && cap > 0.0 {
        return Ok(());
    }
    Err(Error::config(field, cap, "a positive number"))
}

/// Refuses NaN and infinities.
pub(super) fn check_finite(field: &str, value: f32) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::config(field, value, "a finite number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_shapes_and_bad_constants_are_errors() {
        let zeros = |n: usize| Tensor::zeros(&crate::Device::cpu(), &[n]).unwrap();
        assert!(zeros(2).swiglu(&zeros(3)).is_err());
        assert!(zeros(2).geglu(&zeros(3)).is_err());
        let error = zeros(2).softcap(-1.0).unwrap_err().to_string();
        assert_eq!(error, "softcap: is -1, must be a positive number");
        let error = zeros(2).log_shifted(f32::NAN).unwrap_err().to_string();
        assert_eq!(error, "shift: is NaN, must be a finite number");
        let error = zeros(2).power(f32::INFINITY, 0.0).unwrap_err().to_string();
        assert_eq!(error, "exponent: is inf, must be a finite number");
    }
}
