//! `mixlora-ffn`: token-level experts inside one shared, frozen gated MLP block (MixLoRA, arXiv:2404.15159). Other
//! linears get a plain LoRA.

use super::lora;
use crate::mixture::routers::TokenExperts;
use crate::mixture::{
    AuxLoss, Experts, Gate, Hook, LinearBuild, Lora, MethodOptions, MethodSpec, MlpBuild, RoutedMlp,
    RouterGradient, Routes, RowMemory, Rule, TopK, Tree, enough,
};
use crate::nn::{LinearAdapter, MlpAdapter};
use crate::{Result, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "mixlora-ffn",
    paper: "MixLoRA (TUDB), arXiv:2404.15159",
    when: "a choice per token: whole LoRA experts in the MLP blocks",
    hook: Hook::Mlp,
    routes: Routes::Token,
    trainable: "3 E r (hidden + ffn) + E hidden; r (d_in + d_out) elsewhere",
    options: || Box::new(MixloraFfn::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `mixlora-ffn`.
    pub struct MixloraFfn use [lora: Lora, experts: Experts, choice: TopK, balance: AuxLoss] {}
}

impl MethodOptions for MixloraFfn {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn check(&self) -> Result<()> {
        enough(("top_k", self.choice.top_k), ("num_experts", self.experts.num_experts))
    }
    fn rule(&self) -> Rule {
        Rule::top_k(self.choice.top_k, Gate::Softmax)
    }
    fn router_gradient(&self) -> RouterGradient {
        match self.choice.top_k {
            1 => RouterGradient::No(
                "with top_k = 1 the only gate is always 1; the balance loss alone trains it",
            ),
            _ => RouterGradient::Yes,
        }
    }
    fn row_memory(&self) -> RowMemory {
        let k = self.choice.top_k as f64;
        RowMemory { per_linear: self.lora.r as f64 * k, mlp_copies: k }
    }
    fn variants(&self, _: &[usize], _: usize) -> Vec<(String, Tree)> {
        let name = format!("E {} r {} top {}", self.experts.num_experts, self.lora.r, self.choice.top_k);
        vec![(name, Tree::new())]
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        lora::adapter(self, at)
    }
    fn mlp(&self, at: &MlpBuild<'_>) -> Result<Option<Arc<dyn MlpAdapter>>> {
        let e = self.experts.num_experts;
        let r = self.lora.r;
        let router = TokenExperts::new(at, e, r, self.rule(), self.balance.aux_loss_coef)?;
        RoutedMlp::adapter(self, at, router).map(Some)
    }
}
