//! `hydra`: one A, many B, all mixed by the softmax of a router (HydraLoRA, arXiv:2404.19245).
//!
//! `y = W x + s sum_e p_e B_e (A x)`, `p = softmax(W_r x)`.

use crate::mixture::routers::dense_memory;
use crate::mixture::{
    Axes, Code, CodedLinears, Experts, Gate, LinearBuild, Lora, MethodOptions, MethodSpec, RouterGradient,
    Routes, RowMemory, Rule, Score, Select, coded_memory,
};
use crate::nn::{LinearAdapter, Param, Pass};
use crate::{Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "hydra",
    paper: "HydraLoRA, arXiv:2404.19245",
    when: "tasks that read alike and answer differently",
    equation: "y = W x + s sum_e p_e B_e (A x), p = softmax(W_r x)",
    axes: Axes {
        input: "the linear's input",
        entry: "B of rank r over one A",
        balance: "none",
        trained: "all",
    },
    routes: Routes::Token,
    trainable: "r d_in + E r d_out + E d_in",
    options: || Box::new(Hydra::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `hydra`.
    pub struct Hydra use [lora: Lora { r: 8, lora_dropout: 0.05 }, experts: Experts { num_experts: 3 }] {}
}

/// Heads of one A, by token.
struct Heads {
    experts: usize,
    /// One `[E, d_in]` per linear.
    routers: Vec<Param>,
}

impl Code for Heads {
    fn code(&self, linear: usize, u: &Tensor, x: &Tensor, _: &Pass) -> Result<Tensor> {
        let gates = x.matmul_nt(&self.routers[linear].tensor())?.softmax()?;
        let [m, r] = [u.shape().rows(), u.shape().last()];
        u.repeat_rows(self.experts)?.reshape(&[m, self.experts * r])?.gate_groups(&gates)
    }
    fn params(&self) -> Vec<Param> {
        self.routers.clone()
    }
}

impl MethodOptions for Hydra {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn rule(&self) -> Rule {
        Rule { score: Score::Softmax, select: Select::All, gate: Gate::Score }
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::Yes
    }
    fn row_memory(&self) -> RowMemory {
        coded_memory(&self.lora, dense_memory(&self.experts, &self.lora).per_linear, true)
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let e = self.experts.num_experts;
        let heads = Heads { experts: e, routers: at.each("router", e)? };
        CodedLinears::adapter(self, at, [self.lora.r, e * self.lora.r], heads)
    }
}
