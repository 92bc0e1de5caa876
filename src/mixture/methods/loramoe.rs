//! `loramoe`: every expert, times the softmax of the router, with a loss that sends types of tasks to halves of the
//! experts (arXiv:2312.09979).

use crate::mixture::losses::localized_balance;
use crate::mixture::routers::{DenseExperts, GateRule, Gated, Scored, dense_memory};
use crate::mixture::{
    Axes, Experts, Gate, LinearBuild, List, Lora, MethodOptions, MethodSpec, RoutedLinears, RouterGradient,
    Routes, RowMemory, Rule, Score, Select,
};
use crate::nn::LinearAdapter;
use crate::{Error, Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "loramoe",
    paper: "LoRAMoE, arXiv:2312.09979",
    when: "a few small experts that all act, some kept for what the base knows",
    equation: "y = W x + s sum_e p_e B_e A_e x, p = softmax(W_r x)\nloss: CV^2 of the gate mass of each sample, times 1 + delta or 1 - delta by type",
    differs: "The loss leaves padding out.",
    axes: Axes {
        input: "the linear's input",
        entry: "LoRA of rank r",
        balance: "localized CV^2 by task type",
        trained: "all",
    },
    routes: Routes::Token,
    trainable: "E r (d_in + d_out) + E d_in",
    options: || Box::new(LoraMoe::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `loramoe`.
    pub struct LoraMoe use [
        lora: Lora { r: 4, lora_alpha: Some(32.0), lora_dropout: 0.05 },
        experts: Experts,
    ] {
        /// Coefficient of the localized balance; 0 leaves it out, as the released script does.
        localized_coef: f32 = 0.0, in 0.0.., "Ablustrund/LoRAMoE";
        /// How far the two halves of the experts are apart in it.
        delta: f32 = 0.0, in 0.0..1.0, "Ablustrund/LoRAMoE";
        /// Tasks of type 1, by their labels; all others are of type 0.
        tasks_of_type_1: List<String> = List(Vec::new()), "Ablustrund/LoRAMoE";
    }
}

impl GateRule for LoraMoe {
    fn gate(&self, scored: &Scored<'_>) -> Result<Gated> {
        let gates = scored.logits.softmax()?;
        scored.add_loss(self.localized_coef, || {
            let tasks = &scored.ask.pass.labels.tasks;
            let [m, l, e] = *gates.dims() else { return gates.sum() };
            if tasks.is_empty() || m % tasks.len() != 0 {
                let what = "needs the samples' tasks for its balance; 0 leaves that out";
                return Err(Error::refused("localized_coef", what));
            }
            let types: Vec<usize> = tasks.iter().map(|task| self.kind(task.as_deref())).collect();
            let counted = match scored.counted().weights() {
                Some(weights) => scored.flat(&gates)?.mul(weights)?,
                None => scored.flat(&gates)?,
            };
            // The sum over the tokens of a sample, for each linear.
            let per_sample = counted.reshape(&[m, l * e])?.sum_groups(m / tasks.len())?;
            let mut sum: Option<Tensor> = None;
            for mass in columns(&per_sample, l)? {
                let loss = localized_balance(&mass, &types, self.delta)?;
                sum = Some(sum.map_or(Ok(loss.clone()), |sum| sum.add(&loss))?);
            }
            sum.ok_or_else(|| Error::refused("loramoe", "has no linear"))
        })?;
        Ok(Gated { gates, mask: None })
    }
}

impl LoraMoe {
    /// The type of a task.
    fn kind(&self, task: Option<&str>) -> usize {
        usize::from(self.tasks_of_type_1.0.iter().any(|own| Some(own.as_str()) == task))
    }
}

/// The columns of each linear, `[B, E]`.
fn columns(x: &Tensor, linears: usize) -> Result<Vec<Tensor>> {
    let [b, n] = *x.dims() else { return Ok(Vec::new()) };
    let table = x.reshape(&[b * linears, n / linears.max(1)])?;
    let of = |l: usize| {
        let rows: Vec<u32> = (0..b).map(|i| (i * linears + l) as u32).collect();
        table.gather_rows(&Tensor::from_u32(x.device(), &[b], &rows)?)
    };
    (0..linears).map(of).collect()
}

impl MethodOptions for LoraMoe {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn check(&self) -> Result<()> {
        let e = self.experts.num_experts;
        if self.localized_coef > 0.0 && !e.is_multiple_of(2) {
            return Err(Error::config("num_experts", e, "even for the localized balance"));
        }
        Ok(())
    }
    fn needs_tasks(&self) -> bool {
        self.localized_coef > 0.0
    }
    fn rule(&self) -> Rule {
        Rule { score: Score::Softmax, select: Select::All, gate: Gate::Score }
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::Yes
    }
    fn row_memory(&self) -> RowMemory {
        dense_memory(&self.experts, &self.lora)
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let router = DenseExperts::new(at, self.experts.num_experts, self.lora.r, self.clone())?;
        RoutedLinears::of_experts(self, at, router)
    }
}
