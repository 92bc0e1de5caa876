//! Cases of an op, which are checked on every back end.

use crate::rng::Stream;
use crate::{Device, Result, Tensor};

/// An input of a case.
#[derive(Debug, Clone)]
pub enum Operand {
    /// Values, and whether the op has a derivative with respect to them.
    Values { dims: Vec<usize>, data: Vec<f32>, grad: bool },
    /// Indices.
    Indices { dims: Vec<usize>, data: Vec<u32> },
}

impl Operand {
    /// Standard normal values with a derivative; `name` picks the random stream.
    pub fn normal(name: &str, dims: &[usize]) -> Self {
        let data = Stream::new(1).named(name).normal_vec(dims.iter().product(), 1.0);
        Operand::Values { dims: dims.to_vec(), data, grad: true }
    }
    /// Uniform values from `low` to `high` with a derivative, for functions that are not defined everywhere.
    pub fn between(name: &str, dims: &[usize], low: f32, high: f32) -> Self {
        let uniform = Stream::new(1).named(name);
        let count = dims.iter().product::<usize>() as u32;
        let data = (0..count).map(|i| low + (high - low) * uniform.uniform(i)).collect();
        Operand::Values { dims: dims.to_vec(), data, grad: true }
    }
    /// Given values with a derivative.
    pub fn values(dims: &[usize], data: Vec<f32>) -> Self {
        Operand::Values { dims: dims.to_vec(), data, grad: true }
    }
    /// Given indices.
    pub fn indices(dims: &[usize], data: Vec<u32>) -> Self {
        Operand::Indices { dims: dims.to_vec(), data }
    }
    /// The same values without a derivative.
    pub fn frozen(self) -> Self {
        match self {
            Operand::Values { dims, data, .. } => Operand::Values { dims, data, grad: false },
            other => other,
        }
    }
    /// The same values times a number.
    pub fn times(mut self, s: f32) -> Self {
        if let Operand::Values { data, .. } = &mut self {
            data.iter_mut().for_each(|v| *v *= s);
        }
        self
    }
    /// The operand on a device.
    pub fn on(&self, device: &Device) -> Result<Tensor> {
        match self {
            Operand::Values { dims, data, .. } => Tensor::from_f32(device, dims, data),
            Operand::Indices { dims, data } => Tensor::from_u32(device, dims, data),
        }
    }
    /// True when there is a derivative with respect to it.
    pub fn has_grad(&self) -> bool {
        matches!(self, Operand::Values { grad: true, .. })
    }
}

type CaseFn = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync>;

/// One computation that every lane must agree on, forward and backward.
pub struct Case {
    /// Shape and options, for messages.
    pub label: String,
    /// Inputs; rounded to f32, so that all lanes see the same numbers.
    pub inputs: Vec<Operand>,
    /// The computation, by the public methods of tensors.
    pub run: CaseFn,
    /// Length of the longest sum: bounds scale with its square root beyond 64.
    pub sum_length: usize,
    /// Bound on the largest error relative to the largest value, at `sum_length` <= 64.
    pub tolerance: f64,
    /// Values below this count as this in relative errors: for gradients that are zero on paper.
    pub floor: f64,
    /// Small enough for central differences in f64 (and smooth near its inputs).
    pub gradcheck: bool,
    /// Work of the forward computation.
    pub flops: f64,
    /// Least bytes moved by the forward computation.
    pub bytes: f64,
}

impl Case {
    /// A case with the standard bounds: 1e-5 of the largest value, gradcheck below 3000 input values.
    pub fn new(
        label: impl Into<String>,
        inputs: Vec<Operand>,
        run: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    ) -> Self {
        let small = inputs
            .iter()
            .map(|o| match o {
                Operand::Values { data, .. } => data.len(),
                Operand::Indices { .. } => 0,
            })
            .sum::<usize>()
            <= 3000;
        Case {
            label: label.into(),
            inputs,
            run: Box::new(run),
            sum_length: 1,
            tolerance: 1e-5,
            floor: 1e-30,
            gradcheck: small,
            flops: 0.0,
            bytes: 0.0,
        }
    }
    /// Sets the length of the longest sum.
    pub fn sums(mut self, n: usize) -> Self {
        self.sum_length = n;
        self
    }
    /// Sets the work: FLOP and bytes of the forward computation.
    pub fn cost(mut self, flops: usize, bytes: usize) -> Self {
        (self.flops, self.bytes) = (flops as f64, bytes as f64);
        self
    }
    /// Sets the floor of relative errors, for outputs or gradients that are zero on paper.
    pub fn floor(mut self, floor: f64) -> Self {
        self.floor = floor;
        self
    }
    /// Leaves the case out of gradcheck: not differentiable, or only at ties.
    pub fn no_gradcheck(mut self) -> Self {
        self.gradcheck = false;
        self
    }
}
