//! `vt-nlp`: Conditional MixLoRA as its authors released it: the sum-product condition, pooling over every
//! position with padding and answer, routing anew in every decoding step, alpha = 2E.

use super::mixlora_cond::{pool_sizes, ungated};
use crate::mixture::routers::ConditionalOptions;
use crate::mixture::{
    Ablations, Axes, Cfs, CfsForm, Conditioned, DecodeRoute, Factors, Files, Instance, InstrToken,
    LinearBuild, Lora, MethodOptions, MethodSpec, Pool, Prunes, RouterGradient, Routes, Rule, SitePart,
    StateBuild, Tree, enough, routers,
};
use crate::nn::{BeforeForward, LinearAdapter};
use crate::{Result, options};
use std::sync::Arc;

/// The entry of the list. Batch 16 x 2, three epochs and 1792 tokens are those of the released training script.
pub static SPEC: MethodSpec = MethodSpec {
    name: "vt-nlp",
    paper: "VT-NLP/MixLoRA at af5cc3f, Shen et al. 2024",
    when: "repeating the paper's own runs",
    equation: "y = W x + s sum_k b_{J_k} (a_{I_k} . x), the condition (sum of the chosen A) * (sum of W_c), s = 2 E / r",
    differs: "As released, but for the randomness of noise and of drawn factors, which is that of mixlora-cond, and for its task_def and attr, which are not offered: router_input = condition is its task_embed, pool = instr its instr. Released adapters with a contrastive instruction token are not read.",
    axes: Axes {
        input: "mean of all positions, and the chosen A",
        entry: "rank-1 factors of A and of B apart",
        balance: "none",
        trained: "factors, as released",
    },
    routes: Routes::Instance,
    trainable: "E (d_in + d_out)",
    files: Files::OwnOrReleased,
    run: &[
        ("train.micro_batch", "16"),
        ("train.grad_accumulation", "2"),
        ("train.learning_rate", "4e-5"),
        ("train.max_grad_norm", "1.0"),
        ("text.max_length", "1792"),
    ],
    options: || Box::new(VtNlp::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `vt-nlp`.
    pub struct VtNlp use [
        lora: Lora { r: 4, lora_dropout: 0.05 },
        factors: Factors,
        cfs: Cfs { cfs_form: Some(CfsForm::SumProduct) },
        instance: Instance { pool: Pool::All, decode_route: DecodeRoute::PerStep },
        ablations: Ablations,
        condition: Conditioned,
        token: InstrToken,
    ] {}
}

impl MethodOptions for VtNlp {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn default_alpha(&self) -> f32 {
        2.0 * self.factors.num_factors as f32
    }
    fn check(&self) -> Result<()> {
        enough(("r", self.lora.r), ("num_factors", self.factors.num_factors))?;
        self.ablations.check(&self.cfs)
    }
    fn rule(&self) -> Rule {
        self.ablations.rule(self.lora.r)
    }
    fn active_share(&self) -> f64 {
        self.lora.r as f64 / self.factors.num_factors as f64
    }
    fn router_gradient(&self) -> RouterGradient {
        ungated(&self.ablations)
    }
    fn instance(&self) -> Option<&Instance> {
        Some(&self.instance)
    }
    fn condition(&self) -> Option<&Conditioned> {
        self.ablations.condition(&self.condition)
    }
    fn takes(&self, part: SitePart) -> bool {
        self.ablations.takes(part)
    }
    fn needs_tasks(&self) -> bool {
        self.has_front()
    }
    fn has_front(&self) -> bool {
        self.token.use_contrastive_instr_token
    }
    fn before(&self, at: &StateBuild<'_>) -> Result<Option<Arc<dyn BeforeForward>>> {
        self.token.before(at)
    }
    fn prunes(&self) -> Prunes {
        self.ablations.prunes(&self.cfs, self.lora.r)
    }
    fn variants(&self, factors: &[usize], r: usize) -> Vec<(String, Tree)> {
        pool_sizes(factors, r)
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let c = ConditionalOptions::new(&self.lora, &self.factors, &self.cfs, None);
        routers::Conditional::adapter(self, at, &c.routed(&self.ablations, &self.condition))
    }
}
