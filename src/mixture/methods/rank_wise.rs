//! `rank-wise`: every rank an expert, softmax gates over the chosen logits: the plain relative of `smora`.

use crate::mixture::routers::TokenRanks;
use crate::mixture::{
    Axes, Beside, Gate, LinearBuild, Lora, MethodOptions, MethodSpec, Prunes, RoutedLinears, RouterGradient,
    Routes, RowMemory, Rule, TopK, Tree, enough,
};
use crate::nn::LinearAdapter;
use crate::{Result, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "rank-wise",
    paper: "after SMoRA, arXiv:2501.15103 (softmax gates: this project)",
    when: "the same as smora with softmax gates",
    equation: "y = W x + s sum over the top k of g_i u_i b_i, g the softmax over the chosen",
    differs: "Softmax gates are this project's.",
    axes: Axes { input: "the linear's input", entry: "rank-1 row", balance: "none", trained: "all" },
    routes: Routes::Token,
    trainable: "r (d_in + d_out) + r d_in",
    options: || Box::new(RankWise::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `rank-wise`.
    pub struct RankWise use [lora: Lora { r: 64 }, choice: TopK { top_k: 8 }] {
        /// Whether the chosen ranks are scaled by softmax gates.
        gated: bool = true, "this project";
    }
}

impl MethodOptions for RankWise {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn check(&self) -> Result<()> {
        enough(("top_k", self.choice.top_k), ("r", self.lora.r))
    }
    fn rule(&self) -> Rule {
        Rule::top_k(self.choice.top_k, if self.gated { Gate::Softmax } else { Gate::None })
    }
    fn active_share(&self) -> f64 {
        self.choice.top_k as f64 / self.lora.r as f64
    }
    fn router_gradient(&self) -> RouterGradient {
        if self.gated {
            gradient_of_shares(self.choice.top_k)
        } else {
            RouterGradient::No("chosen ranks are not scaled by gates")
        }
    }
    fn prunes(&self) -> Prunes {
        Prunes::pairs("r", vec![("router", Beside::Rows(1))])
    }
    fn row_memory(&self) -> RowMemory {
        row_memory(&self.lora, &self.choice)
    }
    fn variants(&self, _: &[usize], _: usize) -> Vec<(String, Tree)> {
        variants(&self.lora, &self.choice)
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let r = self.lora.r;
        let router = TokenRanks::new(at, r, self.rule(), 0.0)?;
        Ok(RoutedLinears::adapter(self, at, router, at.inputs("lora_a", r)?, at.outputs("lora_b", r)?))
    }
}

/// Gates that are shares of the chosen scores train the router, unless there is one.
pub(super) fn gradient_of_shares(top_k: usize) -> RouterGradient {
    if top_k == 1 {
        RouterGradient::No("with top_k = 1 the only gate is always 1")
    } else {
        RouterGradient::Yes
    }
}

/// The products with all ranks, and what is kept of the chosen ones.
pub(super) fn row_memory(lora: &Lora, choice: &TopK) -> RowMemory {
    RowMemory { per_linear: lora.r as f64 + 3.0 * choice.top_k as f64, ..RowMemory::ROUTED }
}

/// The defaults, with a label.
pub(super) fn variants(lora: &Lora, choice: &TopK) -> Vec<(String, Tree)> {
    vec![(format!("r {} top {}", lora.r, choice.top_k), Tree::new())]
}
