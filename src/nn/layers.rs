//! Groups of linears and MLP blocks, each with a place for an adapter.

use super::{Param, Pass};
use crate::{Linear, Result, Tensor};
use std::sync::Arc;

/// An adapter of linears that read the same input.
pub trait LinearAdapter: Send + Sync {
    /// The outputs of all linears, base product included.
    fn forward(&self, x: &Tensor, linears: &[Linear], pass: &Pass) -> Result<Vec<Tensor>>;
    /// Its parameters, frozen ones included.
    fn params(&self) -> Vec<Param>;
    /// Called after each optimizer step: updates without a gradient, such as balancing biases.
    fn after_step(&self) -> Result<()> {
        Ok(())
    }
}

/// An adapter of a whole gated MLP block.
pub trait MlpAdapter: Send + Sync {
    /// The output of the block, base products included.
    fn forward(&self, x: &Tensor, mlp: &Mlp, pass: &Pass) -> Result<Tensor>;
    /// Its parameters, frozen ones included.
    fn params(&self) -> Vec<Param>;
    /// Called after each optimizer step.
    fn after_step(&self) -> Result<()> {
        Ok(())
    }
}

/// Frozen linears that read the same input (q, k, v; gate, up), and their adapter.
#[derive(Clone)]
pub struct LinearGroup {
    pub linears: Vec<Linear>,
    pub adapter: Option<Arc<dyn LinearAdapter>>,
}

impl LinearGroup {
    /// Outputs of all linears, in order.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Vec<Tensor>> {
        match &self.adapter {
            Some(a) => a.forward(x, &self.linears, pass),
            None => self.linears.iter().map(|l| x.linear(&l.weight, l.bias.as_ref())).collect(),
        }
    }
}

/// A gated MLP block: `down(silu(gate x) * up x)`. Its adapter takes the whole block, or its groups have their own.
#[derive(Clone)]
pub struct Mlp {
    /// gate_proj and up_proj.
    pub gate_up: LinearGroup,
    /// down_proj.
    pub down: LinearGroup,
    pub adapter: Option<Arc<dyn MlpAdapter>>,
}

impl Mlp {
    /// The block's output.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        if let Some(a) = &self.adapter {
            return a.forward(x, self, pass);
        }
        let gate_up = self.gate_up.forward(x, pass)?;
        let h = gate_up[0].swiglu(&gate_up[1])?;
        Ok(self.down.forward(&h, pass)?.swap_remove(0))
    }
}
