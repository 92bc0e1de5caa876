//! Groups of linears and gated MLP blocks, each at a site where an adapter of the pass may take its place.

use super::bank::blend;
use super::{LinearAdapter, Pass, SiteAdapter};
use crate::{Linear, Result, Tensor};

/// Frozen linears that read the same input (q, k, v; gate, up).
#[derive(Clone)]
pub struct LinearGroup {
    pub linears: Vec<Linear>,
    /// The number of its site in the model; none for a group outside of a model.
    pub site: Option<usize>,
}

impl LinearGroup {
    /// Linears outside of a model, which no adapter of a pass takes.
    pub fn frozen(linears: Vec<Linear>) -> Self {
        LinearGroup { linears, site: None }
    }
    /// Linears at a site of a model.
    pub fn at(site: usize, linears: Vec<Linear>) -> Self {
        LinearGroup { linears, site: Some(site) }
    }

    /// Outputs of all linears, in order.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Vec<Tensor>> {
        let parts = pass.parts(self.site, SiteAdapter::linears);
        let frozen = || self.linears.iter().map(|l| plain(x, l)).collect();
        if parts.is_empty() {
            return frozen();
        }
        blend(&parts, frozen, |part| self.adapted(x, &part.pass, part.adapter.0, part.adapter.1))
    }

    fn adapted(
        &self,
        x: &Tensor,
        pass: &Pass,
        adapter: &dyn LinearAdapter,
        taken: &[usize],
    ) -> Result<Vec<Tensor>> {
        if taken.is_empty() || taken.len() == self.linears.len() {
            return adapter.forward(x, &self.linears, pass);
        }
        let some: Vec<Linear> = taken.iter().filter_map(|&i| self.linears.get(i).cloned()).collect();
        let mut adapted = adapter.forward(x, &some, pass)?.into_iter();
        let outputs = self.linears.iter().enumerate().map(|(i, l)| {
            let output = if taken.contains(&i) { adapted.next() } else { None };
            output.map_or_else(|| plain(x, l), Ok)
        });
        outputs.collect()
    }
}

fn plain(x: &Tensor, l: &Linear) -> Result<Tensor> {
    x.linear(&l.weight, l.bias.as_ref())
}

/// What an MLP makes of the product of its gate, or of its first linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    #[default]
    Silu,
    /// The form with tanh.
    Gelu,
    /// The exact form.
    GeluErf,
    /// The form with a logistic function.
    QuickGelu,
}

impl Activation {
    /// `act(x)`, element by element.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Silu => x.silu(),
            Activation::Gelu => x.gelu(),
            Activation::GeluErf => x.gelu_erf(),
            Activation::QuickGelu => x.quick_gelu(),
        }
    }
    /// `act(gate) * up`, element by element.
    pub fn combine(self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Silu => gate.swiglu(up),
            Activation::Gelu => gate.geglu(up),
            Activation::GeluErf => gate.gelu_erf()?.mul(up),
            Activation::QuickGelu => gate.quick_gelu()?.mul(up),
        }
    }
}

/// A gated MLP block: `down(act(gate x) * up x)`. An adapter takes the whole block, or its groups have their own.
#[derive(Clone)]
pub struct Mlp {
    /// gate_proj and up_proj.
    pub gate_up: LinearGroup,
    /// down_proj.
    pub down: LinearGroup,
    pub activation: Activation,
    /// The number of its site in the model; none for a block outside of a model.
    pub site: Option<usize>,
}

impl Mlp {
    /// A block with SiLU outside of a model, which no adapter of a pass takes.
    pub fn frozen(gate: Linear, up: Linear, down: Linear) -> Self {
        Mlp {
            gate_up: LinearGroup::frozen(vec![gate, up]),
            down: LinearGroup::frozen(vec![down]),
            activation: Activation::Silu,
            site: None,
        }
    }

    /// The block's output.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let parts = pass.parts(self.site, SiteAdapter::mlp);
        if parts.is_empty() {
            return self.linears(x, pass);
        }
        let frozen = || Ok(vec![self.linears(x, &pass.of_base())?]);
        let adapted = blend(&parts, frozen, |part| Ok(vec![part.adapter.forward(x, self, &part.pass)?]))?;
        let y = &adapted[0];
        if !pass.adapts([self.gate_up.site, self.down.site]) {
            return Ok(y.clone());
        }
        // Others of the bank adapt the linears inside.
        y.add(&self.linears(x, pass)?.add_scaled(&frozen()?[0], -1.0)?)
    }

    fn linears(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let gate_up = self.gate_up.forward(x, pass)?;
        let h = self.combine(&gate_up[0], &gate_up[1])?;
        Ok(self.down.forward(&h, pass)?.swap_remove(0))
    }

    /// What the block makes of the products of gate and up: `act(gate) * up`, with the model's activation.
    pub fn combine(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        self.activation.combine(gate, up)
    }
}
