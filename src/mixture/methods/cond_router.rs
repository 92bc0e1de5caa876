//! `cond-router`: LoRA experts for each sample, chosen by a condition beside its text: a user, a style, a picture, the text of
//! an instruction (arXiv:2512.14140, arXiv:2408.03533).
//!
//! `z = W_r c` of the sample's condition c; the k largest, `g = softmax over them`; `y = W x + s sum_e g_e B_e A_e x` at all
//! positions of the sample.

use crate::mixture::{
    Ask, Axes, Conditioned, Experts, Gate, LinearBuild, Lora, MethodOptions, MethodSpec, RoutedLinears,
    Router, RouterGradient, Routes, Routing, RowMemory, Rule, Selection, TopK, enough, route,
};
use crate::nn::{LinearAdapter, Param};
use crate::{Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "cond-router",
    paper: "SketchAssist, arXiv:2512.14140; RecLoRA, arXiv:2408.03533",
    when: "answers that depend on who asks, or on what is beside the text",
    equation: "y = W x + s sum over the top k of g_e B_e A_e x, g = softmax(W_r c over the chosen), c the sample's condition",
    differs: "Neither paper prints its router; this is the plain one: one linear map of the conditions, joined.",
    axes: Axes {
        input: "a condition beside the text",
        entry: "LoRA of rank r",
        balance: "none",
        trained: "all",
    },
    routes: Routes::Condition,
    trainable: "E r (d_in + d_out) + E c, c the width of a condition",
    options: || Box::new(CondRouter::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `cond-router`.
    pub struct CondRouter use [lora: Lora { r: 8 }, experts: Experts, choice: TopK, condition: Conditioned] {}
}

/// Chooses by the condition of each sample.
struct ByCondition {
    linears: usize,
    experts: usize,
    rank: usize,
    condition: Conditioned,
    routing: Routing,
    /// `[L * E, condition_width]`
    router: Param,
}

impl Router for ByCondition {
    const UNIT: Routes = Routes::Condition;

    fn pool(&self) -> (usize, usize) {
        (self.experts, self.rank)
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let (conditions, units) = self.condition.units_of(ask.pass, x.shape().rows())?;
        let z = conditions.matmul_nt(&self.router.tensor())?;
        let z = z.reshape(&[units.count(), self.linears, 1, self.experts])?;
        route(&z, None, None, ask.forced, &self.routing, &units, self.rank)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.router.clone()]
    }
}

impl MethodOptions for CondRouter {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn check(&self) -> Result<()> {
        enough(("top_k", self.choice.top_k), ("num_experts", self.experts.num_experts))
    }
    fn condition(&self) -> Option<&Conditioned> {
        Some(&self.condition)
    }
    fn rule(&self) -> Rule {
        Rule::top_k(self.choice.top_k, Gate::Softmax)
    }
    fn router_gradient(&self) -> RouterGradient {
        match self.choice.top_k {
            1 => RouterGradient::No("with top_k = 1 the only gate is always 1"),
            _ => RouterGradient::Yes,
        }
    }
    fn row_memory(&self) -> RowMemory {
        RowMemory { per_linear: 2.0 * (self.choice.top_k * self.lora.r) as f64, ..RowMemory::PLAIN }
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let [e, r] = [self.experts.num_experts, self.lora.r];
        at.site.fits("r", r)?;
        let width = self.condition.width()?;
        let router = ByCondition {
            linears: at.site.linears.len(),
            experts: e,
            rank: r,
            condition: self.condition.clone(),
            routing: self.rule().routing()?,
            router: at.uniform(at.site.parts("router", e), width, 1.0 / (width as f32).sqrt(), true)?,
        };
        RoutedLinears::of_experts(self, at, router)
    }
}
