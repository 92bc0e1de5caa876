//! `mixlora-cond-gated`: Conditional MixLoRA whose factors are scaled by their gates, so that the routers learn.

use super::mixlora_cond::pool_sizes;
use crate::mixture::routers::{ConditionalOptions, Gates};
use crate::mixture::{
    Ablations, Axes, Cfs, Conditioned, Factors, Gate, GateScale, Instance, InstrToken, LinearBuild, Lora,
    MethodOptions, MethodSpec, Prunes, RouterGradient, Routes, Rule, SitePart, StateBuild, Tree, enough,
    routers,
};
use crate::nn::{BeforeForward, LinearAdapter};
use crate::{Result, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "mixlora-cond-gated",
    paper: "after Shen et al. 2024, ACL long.38 (gates: this project)",
    when: "the same, with routers that learn",
    equation: "y = W x + s sum_k g_k h_k b_{J_k} (a_{I_k} . x), g and h the softmax over the chosen of each side",
    differs: "Gates are this project's: the release has none, so its routers stay as drawn. With noise, gates are made of the noisy scores; with one A for all, of B's alone.",
    axes: Axes {
        input: "mean of the instance, and the chosen A",
        entry: "rank-1 factors of A and of B apart",
        balance: "none",
        trained: "all",
    },
    routes: Routes::Instance,
    trainable: "E (d_in + d_out) + E d_in (2 + r)",
    options: || Box::new(MixloraCondGated::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `mixlora-cond-gated`.
    pub struct MixloraCondGated use [
        lora: Lora { r: 4 },
        factors: Factors,
        cfs: Cfs,
        instance: Instance,
        ablations: Ablations,
        condition: Conditioned,
        token: InstrToken,
    ] {
        /// Factor on each side's gates: r, they sum to r; none, to 1.
        gate_scale: GateScale = GateScale::R, "this project";
        /// The condition sees A's factors times their gates.
        cfs_gated_input: bool = false, "ACL 2024 long.38";
    }
}

impl MethodOptions for MixloraCondGated {
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
        self.ablations.check_gated(&self.cfs, self.cfs_gated_input)
    }
    fn rule(&self) -> Rule {
        Rule::top_k(self.lora.r, Gate::Softmax)
    }
    fn active_share(&self) -> f64 {
        self.lora.r as f64 / self.factors.num_factors as f64
    }
    fn router_gradient(&self) -> RouterGradient {
        match self.lora.r {
            1 => RouterGradient::No("with r = 1 the only gate is always 1"),
            _ => RouterGradient::Yes,
        }
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
        let gates = Gates { scale: self.gate_scale, condition_sees_them: self.cfs_gated_input };
        let c = ConditionalOptions::new(&self.lora, &self.factors, &self.cfs, Some(gates));
        routers::Conditional::adapter(self, at, &c.routed(&self.ablations, &self.condition))
    }
}
