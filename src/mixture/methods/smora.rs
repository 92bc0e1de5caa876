//! `smora`: every rank an expert, sigmoid scores with a balancing bias (arXiv:2501.15103, as its code has it).
//!
//! `q = sigmoid(W_r x) + d`; the k largest; gates `k q / sum of the chosen q`; scale alpha / k.

use super::rank_wise;
use crate::mixture::routers::TokenRanks;
use crate::mixture::{
    Axes, Beside, BiasBalance, Gate, LinearBuild, Lora, MethodOptions, MethodSpec, Prunes, RoutedLinears,
    RouterGradient, Routes, RowMemory, Rule, Score, TopK, Tree, enough,
};
use crate::nn::LinearAdapter;
use crate::{Result, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "smora",
    paper: "SMoRA, arXiv:2501.15103",
    when: "a choice per token among single ranks",
    equation: "q = sigmoid(W_r x) + d; y = W x + (lora_alpha / k) sum over the top k of (k q_i / sum q) u_i b_i",
    axes: Axes {
        input: "the linear's input",
        entry: "rank-1 row",
        balance: "bias without gradient",
        trained: "all",
    },
    routes: Routes::Token,
    trainable: "r (d_in + d_out) + r d_in",
    options: || Box::new(Smora::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `smora`.
    pub struct Smora use [
        lora: Lora { r: 64, lora_alpha: Some(16.0) },
        choice: TopK { top_k: 8 },
        balance: BiasBalance { bias_lr: 1e-5 },
    ] {}
}

impl MethodOptions for Smora {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn scale(&self) -> f32 {
        self.alpha() / self.choice.top_k as f32
    }
    fn check(&self) -> Result<()> {
        enough(("top_k", self.choice.top_k), ("r", self.lora.r))
    }
    fn rule(&self) -> Rule {
        Rule { score: Score::Sigmoid, ..Rule::top_k(self.choice.top_k, Gate::Share) }
    }
    fn active_share(&self) -> f64 {
        self.choice.top_k as f64 / self.lora.r as f64
    }
    fn router_gradient(&self) -> RouterGradient {
        rank_wise::gradient_of_shares(self.choice.top_k)
    }
    fn prunes(&self) -> Prunes {
        Prunes::pairs("r", vec![("router", Beside::Rows(1)), ("bias", Beside::Columns)])
    }
    fn row_memory(&self) -> RowMemory {
        rank_wise::row_memory(&self.lora, &self.choice)
    }
    fn variants(&self, _: &[usize], _: usize) -> Vec<(String, Tree)> {
        rank_wise::variants(&self.lora, &self.choice)
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let r = self.lora.r;
        let router = TokenRanks::new(at, r, self.rule(), self.balance.bias_lr)?;
        Ok(RoutedLinears::adapter(self, at, router, at.inputs("lora_a", r)?, at.outputs("lora_b", r)?))
    }
}
