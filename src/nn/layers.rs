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
    /// Which linears the adapter takes, in order; all when empty.
    pub adapted: Vec<usize>,
}

impl LinearGroup {
    /// Linears without an adapter.
    pub fn frozen(linears: Vec<Linear>) -> Self {
        LinearGroup { linears, adapter: None, adapted: Vec::new() }
    }
    /// Linears that an adapter takes all of.
    pub fn adapted_by(linears: Vec<Linear>, adapter: Arc<dyn LinearAdapter>) -> Self {
        LinearGroup { linears, adapter: Some(adapter), adapted: Vec::new() }
    }

    /// Outputs of all linears, in order.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Vec<Tensor>> {
        let plain = |l: &Linear| x.linear(&l.weight, l.bias.as_ref());
        let Some(adapter) = &self.adapter else { return self.linears.iter().map(plain).collect() };
        if self.adapted.is_empty() || self.adapted.len() == self.linears.len() {
            return adapter.forward(x, &self.linears, pass);
        }
        let some: Vec<Linear> = self.adapted.iter().filter_map(|&i| self.linears.get(i).cloned()).collect();
        let mut adapted = adapter.forward(x, &some, pass)?.into_iter();
        let outputs = self.linears.iter().enumerate().map(|(i, l)| match self.adapted.contains(&i) {
            true => adapted.next().map_or_else(|| plain(l), Ok),
            false => plain(l),
        });
        outputs.collect()
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
