//! `meteora`: many LoRAs under one router for each linear, which is also told the task of each token (arXiv:2405.13053).
//!
//! `y = W x + s sum over the top k of g_e B_e A_e x`, `g = softmax(z over the chosen / temperature)`; to the loss comes `mean
//! -log softmax(z)[task]` over tokens of samples with a task.

use crate::mixture::losses::log_probabilities;
use crate::mixture::routers::{ChoiceLoss, Chosen, TokenLoras};
use crate::mixture::{
    Axes, Experts, Gate, LinearBuild, Lora, MethodOptions, MethodSpec, RoutedLinears, RouterGradient, Routes,
    RowMemory, Rule, TakesExperts, Tasks, TemperatureSchedule, TopK, enough, labels_of_rows,
};
use crate::nn::LinearAdapter;
use crate::{Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "meteora",
    paper: "MeteoRA, arXiv:2405.13053",
    when: "one LoRA for each task, and prompts that mix tasks",
    equation: "y = W x + s sum over the top k of g_e B_e A_e x, g = softmax(z over the chosen / temperature)\nloss: mean -log softmax(z)[task]",
    differs: "Labels are those of the token itself; the release pairs a token with the label of the next one.",
    axes: Axes {
        input: "the linear's input",
        entry: "LoRA of rank r, one for each task",
        balance: "cross-entropy with the task",
        trained: "all",
    },
    routes: Routes::Token,
    trainable: "E r (d_in + d_out) + E d_in",
    run: &[("train.learning_rate", "5e-4")],
    options: || Box::new(Meteora::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `meteora`.
    pub struct Meteora use [
        lora: Lora { r: 8 },
        experts: Experts { num_experts: 28 },
        choice: TopK,
        tasks: Tasks,
    ] {
        /// What the chosen logits are divided by.
        temperature: f32 = 1.0, in 0.01.., "arXiv:2405.13053";
        /// What they are divided by at the start of training, where that is to change; absent: temperature from the start.
        temperature_start: Option<f32> = None, in 0.01..;
        /// The step from which they are divided by temperature.
        temperature_until: usize = 0;
        /// Coefficient of the cross-entropy of the router with the task.
        gate_loss_coef: f32 = 50.0, in 0.0.., "NJUDeepEngine/meteora";
    }
}

/// Cross-entropy of the router with the expert of a token's task; tokens without a task have none.
struct GateLoss {
    coefficient: f32,
    tasks: Tasks,
    experts: usize,
}

impl ChoiceLoss for GateLoss {
    fn coefficient(&self) -> f32 {
        self.coefficient
    }
    fn loss(&self, chosen: &Chosen<'_>) -> Result<Tensor> {
        let [m, l, e] = *chosen.logits.dims() else { return chosen.logits.sum() };
        let labels = labels_of_rows(chosen.ask.pass, m, &self.tasks, self.experts)?;
        let counted = labels.iter().filter(|label| **label != u32::MAX).count();
        let each: Vec<u32> = labels.iter().flat_map(|label| vec![*label; l]).collect();
        let log_p = log_probabilities(&chosen.logits.reshape(&[m * l, e])?, &each)?;
        log_p.sum()?.scale(-1.0 / counted.max(1) as f32)
    }
}

impl MethodOptions for Meteora {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn check(&self) -> Result<()> {
        enough(("top_k", self.choice.top_k), ("num_experts", self.experts.num_experts))
    }
    fn tasks(&self) -> Option<&Tasks> {
        (self.gate_loss_coef > 0.0).then_some(&self.tasks)
    }
    fn rule(&self) -> Rule {
        Rule::top_k(self.choice.top_k, Gate::Softmax)
    }
    fn router_gradient(&self) -> RouterGradient {
        match self.choice.top_k {
            1 => {
                RouterGradient::No("with top_k = 1 the only gate is always 1; the task labels alone train it")
            }
            _ => RouterGradient::Yes,
        }
    }
    fn takes_experts(&self) -> TakesExperts {
        TakesExperts::Optional
    }
    fn row_memory(&self) -> RowMemory {
        let k = self.choice.top_k as f64;
        let e = self.experts.num_experts as f64;
        RowMemory { per_linear: 2.0 * k * self.lora.r as f64 + 2.0 * e, ..RowMemory::ROUTED }
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let e = self.experts.num_experts;
        let tasks = self.tasks.clone();
        // The loss is a mean over all linears of the model.
        let coefficient = self.gate_loss_coef / at.site.all.max(1) as f32;
        let loss = GateLoss { coefficient, tasks, experts: e };
        // The release draws its gates from N(0, 1).
        let router = at.normal(at.site.parts("router", e), at.site.d_in, 1.0, true)?;
        let temperature = TemperatureSchedule {
            start: self.temperature_start.unwrap_or(self.temperature),
            target: self.temperature,
            until: self.temperature_until,
        };
        let router = TokenLoras::new(at, router, [e, self.lora.r], self.rule(), temperature, loss)?;
        RoutedLinears::of_experts(self, at, router)
    }
}
