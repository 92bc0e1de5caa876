//! Every expert for every token, each times a gate: mixtures whose gates are mostly not zero, or that must be computed
//! whole to know which are.

use crate::mixture::losses::Counted;
use crate::mixture::{Ask, Experts, LinearBuild, Lora, Router, Routes, RowMemory, Selection};
use crate::nn::Param;
use crate::ops::select::SelectRule;
use crate::{Error, Result, Tensor};

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

impl Gated {
    /// `softmax(z)` of the k largest logits `[M, L, E]` of each row, or of those with a 1 in `forced`; 0 elsewhere.
    ///
    /// # Errors
    /// `forced` is no mask of these logits.
    pub fn top_k(logits: &Tensor, k: usize, forced: Option<&Tensor>) -> Result<Self> {
        let mask = match forced {
            Some(mask) => mask.clone(),
            None => logits.detach().select(&SelectRule::TopK(k))?,
        };
        Ok(Gated { gates: logits.softmax()?.mul(&mask)?, mask: Some(mask) })
    }

    /// The gates divided by their sum over the experts.
    ///
    /// # Errors
    /// The device failed.
    pub fn normalised(self) -> Result<Self> {
        let sums = [&self.gates.dims()[..self.gates.dims().len() - 1], &[1]].concat();
        let share = self.gates.sum_last()?.reshape(&sums)?.power(-1.0, 0.0)?;
        Ok(Gated { gates: self.gates.mul(&share)?, mask: self.mask })
    }

    /// The gates of one of several linears, `[M, E]`.
    ///
    /// # Errors
    /// The device failed.
    pub fn of_linear(gates: &Tensor, linear: usize) -> Result<Tensor> {
        let [m, l, e] = *gates.dims() else {
            return Err(Error::shape("gates", "[M, L, E]", gates.shape()));
        };
        columns(&gates.reshape(&[m, l * e])?, linear * e..(linear + 1) * e)
    }
}

/// Some columns of a matrix `[M, N]`, as its product with zeros and ones.
fn columns(x: &Tensor, range: std::ops::Range<usize>) -> Result<Tensor> {
    let n = x.shape().last();
    if range == (0..n) {
        return Ok(x.clone());
    }
    let wanted: Vec<f32> =
        range.clone().flat_map(|column| (0..n).map(move |i| f32::from(u8::from(i == column)))).collect();
    x.matmul_nt(&Tensor::from_f32(x.device(), &[range.len(), n], &wanted)?)
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
