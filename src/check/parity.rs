//! A case on one device against the f64 reference: outputs and gradients, with poisoned buffers.

use super::Deviation;
use crate::ops::{Case, Operand};
use crate::rng::Stream;
use crate::{DType, Device, Result, Tensor, backward};
use std::fmt;

/// Bound relative to the largest value where a device rounds the operands of products to f16.
pub const F16_BOUND: f64 = 2e-3;

/// Result of one case on one device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parity {
    pub forward: Deviation,
    pub backward: Deviation,
    /// Index outputs are equal.
    pub indices: bool,
    /// No kernel wrote behind its buffers (checked when the device is in guard mode).
    pub guards: bool,
    /// Bound on the largest relative error that applies to this case.
    pub bound: f64,
    /// Bound on the normalised mean square error.
    pub nmse_bound: f64,
}

impl Parity {
    /// True when every bound holds.
    pub fn holds(&self) -> bool {
        let fine = |d: &Deviation| d.max <= self.bound && d.nmse <= self.nmse_bound;
        self.indices && self.guards && fine(&self.forward) && fine(&self.backward)
    }
    /// Bounds that suit a device: wider where it was asked for cooperative matrices.
    pub fn bounded_for(self, device: &Device) -> Self {
        if !device.rounds_operands() {
            return self;
        }
        Parity {
            bound: self.bound.max(F16_BOUND),
            nmse_bound: self.nmse_bound.max(F16_BOUND * F16_BOUND),
            ..self
        }
    }
    /// The worst relative error.
    pub fn worst(&self) -> f64 {
        self.forward.max.max(self.backward.max)
    }
}

/// One line: the worst figures and their bounds.
impl fmt::Display for Parity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parity { forward, backward, bound, nmse_bound, .. } = self;
        write!(f, "forward max {:.1e} nmse {:.1e}, ", forward.max, forward.nmse)?;
        write!(f, "backward max {:.1e} nmse {:.1e}, ", backward.max, backward.nmse)?;
        write!(f, "bounds {bound:.1e} and {nmse_bound:.1e}")?;
        for (good, what) in [(self.indices, "indices differ"), (self.guards, "written behind a buffer")] {
            if !good {
                write!(f, ", {what}")?;
            }
        }
        Ok(())
    }
}

struct Values {
    outputs: Vec<Vec<f64>>,
    indices: Vec<Vec<u32>>,
    gradients: Vec<Vec<f64>>,
}

fn evaluate(case: &Case, device: &Device) -> Result<Values> {
    let inputs = case
        .inputs
        .iter()
        .map(|o| Ok(if o.has_grad() { o.on(device)?.leaf() } else { o.on(device)? }))
        .collect::<Result<Vec<Tensor>>>()?;
    let y = (case.run)(&inputs)?;
    let mut v = Values { outputs: vec![], indices: vec![], gradients: vec![] };
    let mut roots = Vec::new();
    for (i, t) in y.iter().enumerate() {
        match t.dtype() {
            DType::U32 => v.indices.push(t.to_u32()?),
            DType::F32 => {
                v.outputs.push(t.to_f64()?);
                let seed = Stream::new(99).fork(i as u64).normal_vec(t.len(), 1.0);
                roots.push((t, Tensor::from_f32(device, t.dims(), &seed)?));
            }
        }
    }
    let grads = backward(&roots)?;
    for (t, o) in inputs.iter().zip(&case.inputs) {
        if o.has_grad() {
            v.gradients.push(match grads.get(t) {
                Some(g) => g.to_f64()?,
                None => vec![0.0; t.len()],
            });
        }
    }
    Ok(v)
}

/// Runs a case on `device` and on the reference and compares.
pub fn parity(case: &Case, device: &Device) -> Result<Parity> {
    let want = evaluate(case, &Device::reference())?;
    let got = evaluate(case, device)?;
    let compare = |got: &[Vec<f64>], want: &[Vec<f64>]| {
        got.iter().zip(want).fold(Deviation::default(), |d, (g, w)| d.worst(Deviation::of(g, w, case.floor)))
    };
    let grow = (case.sum_length as f64 / 64.0).max(1.0).sqrt();
    Ok(Parity {
        forward: compare(&got.outputs, &want.outputs),
        backward: compare(&got.gradients, &want.gradients),
        indices: got.indices == want.indices,
        guards: device.check_guards()?,
        bound: case.tolerance * grow,
        nmse_bound: 1e-11 * (case.tolerance / 1e-5).powi(2).max(1.0) * grow * grow,
    })
}

/// The bits of all outputs and gradients of a case, to compare two runs.
pub fn bits(case: &Case, device: &Device) -> Result<Vec<u32>> {
    let v = evaluate(case, device)?;
    let floats = v.outputs.iter().chain(&v.gradients).flatten().map(|&x| (x as f32).to_bits());
    Ok(floats.chain(v.indices.into_iter().flatten()).collect())
}

impl Operand {
    /// The values, if it has any.
    pub(super) fn data(&self) -> Option<&[f32]> {
        match self {
            Operand::Values { data, .. } => Some(data),
            Operand::Indices { .. } => None,
        }
    }
}
