//! `mixlora-cond`: Conditional MixLoRA as published: frozen random routers, chosen factors unscaled.

use crate::mixture::routers::ConditionalOptions;
use crate::mixture::{
    Ablations, Axes, Cfs, Conditioned, Factors, Instance, InstrToken, LinearBuild, Lora, MethodOptions,
    MethodSpec, Prunes, RouterGradient, RouterInput, Routes, Rule, SitePart, StateBuild, Tree, enough,
    routers,
};
use crate::nn::{BeforeForward, LinearAdapter};
use crate::{Result, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "mixlora-cond",
    aliases: &["conditional-mixlora", "cond-mixlora", "mixlora-conditional"],
    paper: "Shen et al. 2024, ACL long.38, arXiv:2402.15896",
    when: "several tasks with one adapter, as in the paper (Conditional MixLoRA)",
    equation: "y = W x + s sum_k b_{J_k} (a_{I_k} . x), I = top r of R_A h, J = top r of R_B h + w cond(a_I)\nh = the pooled input of the instance; s = 2 E / r",
    differs: "The condition is the linear map that the paper describes, one for each rank slot; vt-nlp has the form of the release. Padding and the answer stay out of h. Noise and drawn factors are functions of the pass's seed, the site and the place in the batch, so that a pass can be repeated: at inference they are the same in every pass, where the release draws anew. One A for all starts with zeros in all factors of B; the release leaves all but the first as memory is. With use_contrastive_instr_token the loss is exp(-v1) C + exp(-v0) L + (v0 + v1) / 2, with learned v0 and v1, L the language model's loss of a micro-batch and C the supervised contrast between its tasks; evaluation reports L. The temperature of C is not in the paper; it is that of the authors of the contrast. pool = instr is the release's instr.",
    axes: Axes {
        input: "mean of the instance, and the chosen A",
        entry: "rank-1 factors of A and of B apart",
        balance: "none",
        trained: "factors",
    },
    routes: Routes::Instance,
    trainable: "E (d_in + d_out)",
    options: || Box::new(MixloraCond::default()),
    ..MethodSpec::PLAIN
};

/// Whether the task trains the routers of a method without gates.
pub(super) fn ungated(ablations: &Ablations) -> RouterGradient {
    match ablations.router_input {
        RouterInput::Random => RouterGradient::NoRouter,
        _ => RouterGradient::No(
            "chosen factors are not scaled by gates, so routers stay as drawn (as published)",
        ),
    }
}

options! {
    /// Options of `mixlora-cond`.
    pub struct MixloraCond use [
        lora: Lora { r: 4 },
        factors: Factors,
        cfs: Cfs,
        instance: Instance,
        ablations: Ablations,
        condition: Conditioned,
        token: InstrToken,
    ] {}
}

impl MethodOptions for MixloraCond {
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

/// The pools that a user of `bench layer` asks for.
pub(super) fn pool_sizes(factors: &[usize], r: usize) -> Vec<(String, Tree)> {
    let sizes = |&e: &usize| {
        let tree = Tree::from_iter([("num_factors".to_string(), e.into()), ("r".to_string(), r.into())]);
        (format!("E {e} r {r}"), tree)
    };
    factors.iter().map(sizes).collect()
}
