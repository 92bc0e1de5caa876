//! Every expert for every token, each times a gate: mixtures whose gates are mostly not zero, or that must be computed
//! whole to know which are.

use crate::mixture::losses::Counted;
use crate::mixture::{Ask, Experts, LinearBuild, Lora, Router, Routes, RowMemory, Selection};
use crate::nn::Param;
use crate::{Result, Tensor};

/// The logits of all experts for all tokens, to be turned into gates.
pub struct Scored<'a> {
    /// The tokens `[M, d]`.
    pub x: &'a Tensor,
    /// `[M, L, E]`
    pub logits: Tensor,
    pub ask: &'a Ask<'a>,
}

impl Scored<'_> {
    /// The tokens that losses are means over.
    pub fn counted(&self) -> Counted {
        Counted::of(self.ask.pass, self.logits.dims()[0])
    }

    /// A value for each token, linear and expert as `[M, L * E]`.
    ///
    /// # Errors
    /// It has another number of values.
    pub fn flat(&self, values: &Tensor) -> Result<Tensor> {
        let rows = self.logits.dims()[0];
        values.reshape(&[rows, values.len() / rows.max(1)])
    }

    /// Adds an auxiliary loss to the pass, times its coefficient, where the pass trains and the coefficient is not 0.
    ///
    /// # Errors
    /// The loss fails.
    pub fn add_loss(&self, coefficient: f32, loss: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        if self.ask.pass.train && coefficient > 0.0 {
            self.ask.pass.add_aux(loss()?.scale(coefficient)?);
        }
        Ok(())
    }
}

/// Gates `[M, L, E]`.
pub struct Gated {
    pub gates: Tensor,
    /// 1 where an expert acts, `[M, L, E]`; none where all do.
    pub mask: Option<Tensor>,
}

/// How logits become gates.
pub trait GateRule: Send + Sync {
    /// Whether some experts do not act: the gates have a mask then.
    fn chooses(&self) -> bool {
        false
    }
    /// Gates, and the auxiliary losses of a training pass.
    ///
    /// # Errors
    /// The device failed, or the pass lacks what the rule needs.
    fn gate(&self, scored: &Scored<'_>) -> Result<Gated>;
    /// Its own parameters, frozen ones included.
    fn params(&self) -> Vec<Param> {
        Vec::new()
    }
}

/// Scores `experts` LoRAs for each token by its products with a router's rows.
pub struct DenseExperts<G> {
    linears: usize,
    experts: usize,
    rank: usize,
    /// `[L * E, d_in]`
    router: Param,
    rule: G,
}

impl<G: GateRule> DenseExperts<G> {
    /// A fresh router, uniform in `-1/sqrt(d_in)..1/sqrt(d_in)`.
    ///
    /// # Errors
    /// An expert has a rank that a linear cannot have.
    pub fn new(at: &LinearBuild<'_>, experts: usize, rank: usize, rule: G) -> Result<Self> {
        at.site.fits("r", rank)?;
        let router = at.inputs("router", experts)?;
        Ok(DenseExperts { linears: at.site.linears.len(), experts, rank, router, rule })
    }
}

impl<G: GateRule> Router for DenseExperts<G> {
    const UNIT: Routes = Routes::Token;

    fn pool(&self) -> (usize, usize) {
        (self.experts, self.rank)
    }

    fn chooses(&self) -> bool {
        self.rule.chooses()
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let rows = x.reshape(&[x.shape().rows(), x.shape().last()])?;
        let logits = rows.matmul_nt(&self.router.tensor())?;
        let logits = logits.reshape(&[x.shape().rows(), self.linears, self.experts])?;
        let Gated { gates, mask } = self.rule.gate(&Scored { x: &rows, logits, ask })?;
        Selection::dense(gates, mask, &ask.pass.units, self.rank)
    }

    fn params(&self) -> Vec<Param> {
        std::iter::once(self.router.clone()).chain(self.rule.params()).collect()
    }
}

/// What a row keeps where every expert acts: the products with all of A, the same times the gates, logits and gates.
pub fn dense_memory(experts: &Experts, lora: &Lora) -> RowMemory {
    let e = experts.num_experts as f64;
    RowMemory { per_linear: 2.0 * e * lora.r as f64 + 4.0 * e, ..RowMemory::ROUTED }
}
