//! Gated units: SwiGLU and GEGLU.

use super::functions::{Kind, exact, gelu, silu};
use super::{CHUNK, NAME, alike, launch};
use crate::device::{Gpu, Host};
use crate::engine::{Meta, Op, operands, run, run1};
use crate::simd::wide;
use crate::tape::Node;
use crate::{Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// What gates a unit.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Gate {
    Silu,
    Gelu,
}

impl Gate {
    fn kind(self) -> Kind {
        match self {
            Gate::Silu => Kind::Silu,
            Gate::Gelu => Kind::Gelu,
        }
    }
}

operands! {
    struct GatedIn { gate, up }
}

operands! {
    struct GatedBackwardIn { gate, up, dy }
}

/// `(gate, up) -> f(gate) up`
struct Gated(Gate);
/// `(gate, up, dy) -> (dgate, dup)`
struct GatedBackward(Gate);

/// `y = f(a, b)`
fn map_pairs(y: &mut Host, a: &Tensor, b: &Tensor, f: impl Fn(f32, f32) -> f32 + Sync) {
    let inputs = a.f32().par_chunks(CHUNK).zip(b.f32().par_chunks(CHUNK));
    y.f32_mut().par_chunks_mut(CHUNK).zip(inputs).for_each(|(y, (a, b))| {
        wide(|| y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (&a, &b))| *y = f(a, b)));
    });
}

/// `dgate = f'(gate) up dy`, `dup = f(gate) dy`; `f` gives both.
fn gated_backward(
    x: &GatedBackwardIn<'_>,
    [dgate, dup]: [&mut Host; 2],
    f: impl Fn(f32) -> (f32, f32) + Sync,
) {
    let inputs = [x.gate, x.up, x.dy].map(|t| t.f32());
    let tasks = dgate.f32_mut().par_chunks_mut(CHUNK).zip(dup.f32_mut().par_chunks_mut(CHUNK));
    tasks.enumerate().for_each(|(c, (dgate, dup))| {
        let [gate, up, dy] = inputs.map(|v| &v[c * CHUNK..][..dgate.len()]);
        wide(|| {
            let outputs = dgate.iter_mut().zip(dup);
            for ((dgate, dup), ((gate, up), dy)) in outputs.zip(gate.iter().zip(up).zip(dy)) {
                let (value, slope) = f(*gate);
                *dgate = slope * up * dy;
                *dup = value * dy;
            }
        });
    });
}

impl Op for Gated {
    type In<'a> = GatedIn<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &GatedIn<'_>) -> Result<[Meta; 1]> {
        alike(x)
    }

    fn reference(&self, &GatedIn { gate, up }: &GatedIn<'_>, [y]: [&mut Host; 1]) {
        let inputs = gate.f64().iter().zip(up.f64());
        let kind = self.0.kind();
        y.f64_mut().iter_mut().zip(inputs).for_each(|(y, (gate, up))| *y = exact(kind, *gate).0 * up);
    }

    fn cpu(&self, &GatedIn { gate, up }: &GatedIn<'_>, [y]: [&mut Host; 1]) {
        match self.0 {
            Gate::Silu => map_pairs(y, gate, up, |gate, up| silu(gate).0 * up),
            Gate::Gelu => map_pairs(y, gate, up, |gate, up| gelu(gate).0 * up),
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &GatedIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch(gpu, "gated", self.0.kind(), x, y)
    }
}

impl Op<2> for GatedBackward {
    type In<'a> = GatedBackwardIn<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &GatedBackwardIn<'_>) -> Result<[Meta; 2]> {
        alike(x)
    }

    fn reference(&self, x: &GatedBackwardIn<'_>, [dgate, dup]: [&mut Host; 2]) {
        for (i, dy) in x.dy.f64().iter().enumerate() {
            let (value, slope) = exact(self.0.kind(), x.gate.f64()[i]);
            dgate.f64_mut()[i] = slope * x.up.f64()[i] * dy;
            dup.f64_mut()[i] = value * dy;
        }
    }

    fn cpu(&self, x: &GatedBackwardIn<'_>, outputs: [&mut Host; 2]) {
        match self.0 {
            Gate::Silu => gated_backward(x, outputs, silu),
            Gate::Gelu => gated_backward(x, outputs, gelu),
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &GatedBackwardIn<'_>, y: &[Tensor; 2]) -> Result<()> {
        launch(gpu, "gated_backward", self.0.kind(), x, y)
    }
}

impl Tensor {
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
        self.gated("swiglu", Gate::Silu, up)
    }

    /// `gelu(self) * up` with the tanh form of GELU: the gated unit of Gemma, `self` is the gate (Shazeer 2020,
    /// arXiv:2002.05202).
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let cpu = Device::cpu();
    /// let gate = Tensor::from_f32(&cpu, &[2], &[0.0, 50.0])?;
    /// let up = Tensor::from_f32(&cpu, &[2], &[3.0, 2.0])?;
    /// assert_eq!(gate.geglu(&up)?.to_f32()?, [0.0, 100.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The shapes differ.
    pub fn geglu(&self, up: &Tensor) -> Result<Tensor> {
        self.gated("geglu", Gate::Gelu, up)
    }

    fn gated(&self, name: &'static str, f: Gate, up: &Tensor) -> Result<Tensor> {
        let y = run1(&Gated(f), GatedIn { gate: self, up })?;
        let gate = self.detach();
        let up_value = up.detach();
        let again = {
            let gate = gate.clone();
            let up = up_value.clone();
            move || run1(&Gated(f), GatedIn { gate: &gate, up: &up })
        };
        let need_gate = self.requires_grad();
        let need_up = up.requires_grad();
        Ok(Node::record_again(name, &[self, up], y, again, move |dy| {
            let inputs = GatedBackwardIn { gate: &gate, up: &up_value, dy: &dy };
            let [dgate, dup] = run(&GatedBackward(f), inputs)?;
            Ok(vec![need_gate.then_some(dgate), need_up.then_some(dup)])
        }))
    }
}
