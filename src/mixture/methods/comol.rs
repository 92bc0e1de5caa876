//! `comol`: shared factors, and small cores between them that a router mixes by the code itself (arXiv:2603.00573).
//!
//! `u = A x`, `y = W x + s B (sum_e p_e M_e) u`, `p = softmax(W_r u)`: experts are `r x r`, so that many cost little.

use crate::mixture::{
    Axes, Code, CodedLinears, Experts, Gate, LinearBuild, Lora, MethodOptions, MethodSpec, RouterGradient,
    Routes, RowMemory, Rule, Score, Select, coded_memory,
};
use crate::nn::{LinearAdapter, Param, Pass};
use crate::{Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "comol",
    paper: "CoMoL, arXiv:2603.00573",
    when: "many experts in the size of one LoRA",
    equation: "u = A x; y = W x + s B (sum_e p_e M_e) u, p = softmax(W_r u)",
    differs: "No scale is stated: lora_alpha = r gives the printed form. Cores start like linears, B at zero.",
    axes: Axes {
        input: "the code A x",
        entry: "core r x r between shared factors",
        balance: "none",
        trained: "all",
    },
    routes: Routes::Token,
    trainable: "r (d_in + d_out) + E r^2 + E r",
    options: || Box::new(CoMol::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `comol`.
    pub struct CoMol use [lora: Lora, experts: Experts] {}
}

/// Cores between the factors, mixed by token.
struct Cores {
    experts: usize,
    rank: usize,
    /// One `[E * r, r]` per linear: core e maps u to its rows `e r .. (e + 1) r`.
    cores: Vec<Param>,
    /// One `[E, r]` per linear.
    routers: Vec<Param>,
}

impl Code for Cores {
    fn code(&self, linear: usize, u: &Tensor, _: &Tensor, _: &Pass) -> Result<Tensor> {
        let gates = u.matmul_nt(&self.routers[linear].tensor())?.softmax()?;
        let each = u.matmul_nt(&self.cores[linear].tensor())?.gate_groups(&gates)?;
        each.reshape(&[u.shape().rows() * self.experts, self.rank])?.sum_groups(self.experts)
    }
    fn params(&self) -> Vec<Param> {
        self.cores.iter().chain(&self.routers).cloned().collect()
    }
}

impl MethodOptions for CoMol {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    /// The printed form has no scale.
    fn default_alpha(&self) -> f32 {
        self.lora.r as f32
    }
    fn rule(&self) -> Rule {
        Rule { score: Score::Softmax, select: Select::All, gate: Gate::Score }
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::Yes
    }
    fn row_memory(&self) -> RowMemory {
        let e = self.experts.num_experts as f64;
        let r = self.lora.r as f64;
        coded_memory(&self.lora, 2.0 * r + e * r + e, false)
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let e = self.experts.num_experts;
        let r = self.lora.r;
        let bound = 1.0 / (r as f32).sqrt();
        let drawn = |what: &str, rows: usize| at.apart(what, rows, r, bound);
        let cores = Cores { experts: e, rank: r, cores: drawn("core", e * r)?, routers: drawn("router", e)? };
        CodedLinears::adapter(self, at, [r, r], cores)
    }
}
