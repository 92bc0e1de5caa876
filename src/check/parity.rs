//! Comparison of a case on one device with the f64 reference: outputs and gradients, with poisoned buffers.

use super::Deviation;
use crate::ops::{Case, Operand};
use crate::rng::Stream;
use crate::{DType, Device, Result, Tensor, backward};
use std::fmt;

/// The bound relative to the largest value for devices that round the operands of products to f16.
pub const F16_BOUND: f64 = 2e-3;

/// The result of one case on one device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parity {
    pub forward: Deviation,
    pub backward: Deviation,
    /// Whether index outputs are equal.
    pub indices: bool,
    /// Whether all kernels stayed within their buffers (checked if the device is in guard mode).
    pub guards: bool,
    /// The bound on the largest relative error of this case.
    pub bound: f64,
    /// The bound on the normalised mean square error.
    pub nmse_bound: f64,
}

impl Parity {
    /// Tests whether every bound holds.
    pub fn holds(&self) -> bool {
        let within = |deviation: &Deviation| deviation.max <= self.bound && deviation.nmse <= self.nmse_bound;
        self.indices && self.guards && within(&self.forward) && within(&self.backward)
    }
    /// Widens the bounds for a device that uses cooperative matrices.
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

/// One line with the worst figures and their bounds.
impl fmt::Display for Parity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parity { forward, backward, bound, nmse_bound, .. } = self;
        write!(formatter, "forward max {:.1e} nmse {:.1e}, ", forward.max, forward.nmse)?;
        write!(formatter, "backward max {:.1e} nmse {:.1e}, ", backward.max, backward.nmse)?;
        write!(formatter, "bounds {bound:.1e} and {nmse_bound:.1e}")?;
        for (good, what) in [(self.indices, "indices differ"), (self.guards, "written behind a buffer")] {
            if !good {
                write!(formatter, ", {what}")?;
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
    let inputs =
        case.inputs.iter().map(|operand| operand.leaf_on(device)).collect::<Result<Vec<Tensor>>>()?;
    let outputs = (case.run)(&inputs)?;
    let mut values = Values { outputs: vec![], indices: vec![], gradients: vec![] };
    let mut roots = Vec::new();
    for (index, output) in outputs.iter().enumerate() {
        match output.dtype() {
            DType::U32 => values.indices.push(output.to_u32()?),
            DType::F32 => {
                values.outputs.push(output.to_f64()?);
                let seed = Stream::new(99).fork(index as u64).normal_vec(output.len(), 1.0);
                roots.push((output, Tensor::from_f32(device, output.dims(), &seed)?));
            }
        }
    }
    let gradients = backward(&roots)?;
    for (input, _) in inputs.iter().zip(&case.inputs).filter(|(_, operand)| operand.has_grad()) {
        let gradient = gradients.get(input).map_or(Ok(vec![0.0; input.len()]), Tensor::to_f64)?;
        values.gradients.push(gradient);
    }
    Ok(values)
}

/// Runs a case on `device` and on the reference and compares the results.
///
/// # Errors
/// The case fails on either device.
pub fn parity(case: &Case, device: &Device) -> Result<Parity> {
    let want = evaluate(case, &Device::reference())?;
    let got = evaluate(case, device)?;
    let compare = |got: &[Vec<f64>], want: &[Vec<f64>]| {
        let each = got.iter().zip(want).map(|(got, want)| Deviation::of(got, want, case.floor));
        each.fold(Deviation::default(), Deviation::worst)
    };
    let growth = (case.sum_length as f64 / 64.0).max(1.0).sqrt();
    Ok(Parity {
        forward: compare(&got.outputs, &want.outputs),
        backward: compare(&got.gradients, &want.gradients),
        indices: got.indices == want.indices,
        guards: device.check_guards()?,
        bound: case.tolerance * growth,
        nmse_bound: 1e-11 * (case.tolerance / 1e-5).powi(2).max(1.0) * growth * growth,
    })
}

/// The bits of all outputs and gradients of a case, for comparing two runs.
///
/// # Errors
/// The case fails.
pub fn bits(case: &Case, device: &Device) -> Result<Vec<u32>> {
    let values = evaluate(case, device)?;
    let floats = values.outputs.iter().chain(&values.gradients).flatten();
    let bits = floats.map(|&value| (value as f32).to_bits());
    Ok(bits.chain(values.indices.into_iter().flatten()).collect())
}

impl Operand {
    /// The operand on a device, as a leaf of the tape if it has a gradient.
    pub(crate) fn leaf_on(&self, device: &Device) -> Result<Tensor> {
        let tensor = self.on(device)?;
        Ok(if self.has_grad() { tensor.leaf() } else { tensor })
    }
    /// The f32 values, if the operand has any.
    pub(super) fn data(&self) -> Option<&[f32]> {
        match self {
            Operand::Values { data, .. } => Some(data),
            Operand::Indices { .. } => None,
        }
    }
}
