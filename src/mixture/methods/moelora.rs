//! `moelora`: every expert, times a gate that depends on the task of the sample alone (MOELoRA, arXiv:2310.18339).
//!
//! `y = W x + s sum_e g_e B_e A_e x`, `g = softmax(W_r v_task)` with a learned vector for each task. `r` is the rank of one
//! expert; the paper's is that of all together.

use crate::mixture::routers::dense_memory;
use crate::mixture::{
    Ask, Axes, Experts, Gate, LinearBuild, Lora, MethodOptions, MethodSpec, RoutedLinears, Router,
    RouterGradient, Routes, RowMemory, Rule, Score, Select, Selection, Tasks,
};
use crate::nn::{LinearAdapter, Param};
use crate::{Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "moelora",
    paper: "MOELoRA, arXiv:2310.18339",
    when: "known tasks whose label comes with each request",
    equation: "y = W x + s sum_e g_e B_e A_e x, g = softmax(W_r v_task), s = lora_alpha / (E r)",
    differs: "r is the rank of one expert. Linears that read the same input share the vectors of tasks.",
    axes: Axes {
        input: "a learned vector of the task",
        entry: "LoRA of rank r",
        balance: "none",
        trained: "all",
    },
    routes: Routes::Task,
    trainable: "E r (d_in + d_out) + E v, and tasks v for each group of linears",
    options: || Box::new(MoeLora::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `moelora`.
    pub struct MoeLora use [lora: Lora { r: 2, lora_dropout: 0.1 }, experts: Experts, tasks: Tasks] {
        /// Width of the vector of a task.
        task_width: usize = 64, in 1.0.., "liuqidong07/MOELoRA-peft";
    }
}

/// Gates by task.
struct ByTask {
    linears: usize,
    experts: usize,
    rank: usize,
    tasks: Tasks,
    /// `[tasks, v]`
    vectors: Param,
    /// `[L * E, v]`
    router: Param,
}

impl Router for ByTask {
    const UNIT: Routes = Routes::Task;

    fn pool(&self) -> (usize, usize) {
        (self.experts, self.rank)
    }

    fn chooses(&self) -> bool {
        false
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let numbers = self.tasks.numbers(ask.pass)?;
        let m = x.shape().rows();
        let samples = numbers.len();
        let device = x.device();
        let index: Vec<u32> = numbers.iter().map(|&n| n as u32).collect();
        let vectors = self.vectors.tensor().gather_rows(&Tensor::from_u32(device, &[samples], &index)?)?;
        let logits = vectors.matmul_nt(&self.router.tensor())?;
        let gates = logits.reshape(&[samples, self.linears, self.experts])?.softmax()?;
        let flat = gates.reshape(&[samples, self.linears * self.experts])?;
        let rows = flat.gather_rows(&ask.pass.sample_of_rows(device, samples, m)?)?;
        Selection::dense(rows.reshape(&[m, self.linears, self.experts])?, None, &ask.pass.units, self.rank)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.vectors.clone(), self.router.clone()]
    }
}

impl MethodOptions for MoeLora {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    /// alpha / (E r): the paper divides by the rank of all experts together.
    fn scale(&self) -> f32 {
        self.alpha() / (self.experts.num_experts * self.lora.r) as f32
    }
    fn default_alpha(&self) -> f32 {
        2.0 * (self.experts.num_experts * self.lora.r) as f32
    }
    fn tasks(&self) -> Option<&Tasks> {
        Some(&self.tasks)
    }
    fn rule(&self) -> Rule {
        Rule { score: Score::Softmax, select: Select::All, gate: Gate::Score }
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::Yes
    }
    fn row_memory(&self) -> RowMemory {
        // Its gates are made from the task's vector alone.
        let per_linear = dense_memory(&self.experts, &self.lora).per_linear;
        RowMemory { per_linear, ..RowMemory::PLAIN }
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        at.site.fits("r", self.lora.r)?;
        let e = self.experts.num_experts;
        let v = self.task_width;
        let tasks = self.tasks.tasks.0.len().max(1);
        let shared = vec![(at.site.shared_part("task_vectors"), tasks)];
        let bound = 1.0 / (v as f32).sqrt();
        let router = ByTask {
            linears: at.site.linears.len(),
            experts: e,
            rank: self.lora.r,
            tasks: self.tasks.clone(),
            vectors: at.normal(shared, v, 1.0, true)?,
            router: at.uniform(at.site.parts("router", e), v, bound, true)?,
        };
        RoutedLinears::of_experts(self, at, router)
    }
}
