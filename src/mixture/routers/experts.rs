//! Whole experts for each token of a block, with a loss that spreads the load (MixLoRA, arXiv:2404.15159).

use crate::mixture::balance::load_balance_loss;
use crate::mixture::site::part;
use crate::mixture::{Ask, MlpBuild, Router, Routes, Routing, Rule, Selection, Units, route};
use crate::nn::Param;
use crate::{Result, Tensor};

/// Chooses among `experts` LoRAs of a block by a rule.
pub struct TokenExperts {
    /// `[E, hidden]`
    router: Param,
    experts: usize,
    rank: usize,
    routing: Routing,
    aux_loss_coef: f32,
}

impl TokenExperts {
    /// A fresh router, normal with a standard deviation of 0.02.
    ///
    /// # Errors
    /// The device has no memory for it, or no kernel computes the rule.
    pub fn new(
        at: &MlpBuild<'_>,
        experts: usize,
        rank: usize,
        rule: Rule,
        aux_loss_coef: f32,
    ) -> Result<Self> {
        let parts = vec![(part(&at.site.path, "router"), experts)];
        let router = at.normal(parts, at.site.hidden_size, 0.02, true)?;
        let routing = rule.routing()?;
        Ok(TokenExperts { router, experts, rank, routing, aux_loss_coef })
    }
}

impl Router for TokenExperts {
    const UNIT: Routes = Routes::Token;

    fn pool(&self) -> (usize, usize) {
        (self.experts, self.rank)
    }

    fn choose(&self, rows: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let m = rows.shape().rows();
        let logits = rows.matmul_nt(&self.router.tensor())?;
        let z = logits.reshape(&[m, 1, 1, self.experts])?;
        let choice = route(&z, None, None, ask.forced, &self.routing, &Units::tokens(m), self.rank)?;
        if ask.pass.train && self.aux_loss_coef > 0.0 {
            let loss = load_balance_loss(&logits, choice.idx(), ask.pass)?;
            ask.pass.add_aux(loss.scale(self.aux_loss_coef)?);
        }
        Ok(choice)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.router.clone()]
    }
}
