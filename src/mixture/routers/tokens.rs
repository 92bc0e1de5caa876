//! Every rank of one update is an expert, and each token gets the best of them.

use crate::mixture::balance::LoadBias;
use crate::mixture::{Ask, LinearBuild, Router, Routes, Routing, Rule, Selection, route_rows};
use crate::nn::{Param, Pass};
use crate::{Result, Tensor};

/// Chooses `routing.k` of `ranks` ranks for each token by its products with a router's rows.
pub struct TokenRanks {
    linears: usize,
    ranks: usize,
    routing: Routing,
    /// `[L * r, d_in]`: the router, or A itself, whose products are then the scores.
    scorer: Param,
    /// Whether `scorer` is a parameter of this router.
    owned: bool,
    balance: Option<LoadBias>,
}

impl TokenRanks {
    /// With a router of its own. A balancing bias, of scores that have one, starts at 0 and moves by `bias_lr` in each
    /// step.
    ///
    /// # Errors
    /// An update has more chosen ranks than a linear can have, or no kernel computes the rule.
    pub fn new(at: &LinearBuild<'_>, ranks: usize, rule: Rule, bias_lr: f32) -> Result<Self> {
        let router = at.inputs("router", ranks)?;
        Self::with(at, ranks, rule, bias_lr, router, true)
    }

    /// Scored by the products with A.
    ///
    /// # Errors
    /// As [`new`](TokenRanks::new).
    pub fn by_activation(
        at: &LinearBuild<'_>,
        ranks: usize,
        rule: Rule,
        bias_lr: f32,
        a: &Param,
    ) -> Result<Self> {
        Self::with(at, ranks, rule, bias_lr, a.clone(), false)
    }

    fn with(
        at: &LinearBuild<'_>,
        ranks: usize,
        rule: Rule,
        bias_lr: f32,
        scorer: Param,
        owned: bool,
    ) -> Result<Self> {
        let routing = rule.routing()?;
        // The pool may hold more ranks than one update can use.
        at.site.fits("top_k", routing.k)?;
        let linears = at.site.linears.len();
        let balance = if rule.score.biased() {
            let zeros = Tensor::zeros(at.device, &[linears, ranks])?;
            Some(LoadBias::new(Param::stacked(at.site.parts("bias", 1), zeros, false)?, bias_lr))
        } else {
            None
        };
        Ok(TokenRanks { linears, ranks, routing, scorer, owned, balance })
    }
}

impl Router for TokenRanks {
    const UNIT: Routes = Routes::Token;

    fn pool(&self) -> (usize, usize) {
        (self.ranks, 1)
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let rows = x.reshape(&[x.shape().rows(), x.shape().last()])?;
        let bias = self.balance.as_ref().map(|b| b.bias.value());
        route_rows(&rows, &self.scorer.tensor(), self.linears, bias.as_ref(), ask.forced, &self.routing, 1)
    }

    fn params(&self) -> Vec<Param> {
        let router = self.owned.then(|| self.scorer.clone());
        router.into_iter().chain(self.balance.as_ref().map(|b| b.bias.clone())).collect()
    }

    fn count(&self, choice: &Selection, pass: &Pass) -> Result<()> {
        self.balance.as_ref().map_or(Ok(()), |b| b.count(choice.idx(), pass))
    }

    fn after_step(&self) -> Result<()> {
        self.balance.as_ref().map_or(Ok(()), LoadBias::step)
    }
}
