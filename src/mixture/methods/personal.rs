//! `personal`: one LoRA for a user's data under a gate that leaves everything else to the base (arXiv:1811.00056).
//!
//! `y = W x + g s B A x`, `g = sigmoid(w . x + c)`. To the loss comes the cross-entropy of the gate with 0 on samples of the tasks
//! in `generic_tasks` and 1 on those of other tasks, a mean over tokens.

use crate::mixture::{
    Ask, Axes, Gate, LinearBuild, List, Lora, MethodOptions, MethodSpec, RoutedLinears, Router,
    RouterGradient, Routes, RowMemory, Rule, Score, Select, Selection,
};
use crate::nn::{LinearAdapter, Param, Pass};
use crate::{Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "personal",
    paper: "arXiv:1811.00056",
    when: "a user's own data beside data on which nothing may change",
    equation: "y = W x + g s B A x, g = sigmoid(w . x + c)\nloss: softplus(z) - t z with z = w . x + c, t = 0 on generic tasks and 1 on others",
    differs: "The paper's expert is a small network of its own, and its gate takes one of the two answers; here the gate is soft, and \
              each linear has one for each token.",
    axes: Axes {
        input: "the linear's input",
        entry: "the base, or one LoRA of rank r",
        balance: "cross-entropy with generic or own",
        trained: "all",
    },
    routes: Routes::Token,
    trainable: "r (d_in + d_out) + d_in + 1",
    options: || Box::new(Personal::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `personal`.
    pub struct Personal use [lora: Lora { r: 8 }] {
        /// Labels of the tasks whose samples the base answers; all other tasks are the user's.
        generic_tasks: List<String> = List(vec!["generic".into()]);
        /// Coefficient of the gate's cross-entropy.
        gate_loss_coef: f32 = 1.0, in 0.0..;
    }
}

/// One gate for each token and linear.
struct OneGate {
    linears: usize,
    rank: usize,
    /// Of the loss, as a share of the mean over all linears of the model.
    coefficient: f32,
    generic: Vec<String>,
    /// `[L, d_in]`
    router: Param,
    /// `[L, 1]`
    bias: Param,
}

impl OneGate {
    /// `sum over linears of mean softplus(z) - t z`, over tokens that count of samples with a task.
    fn loss(&self, logits: &Tensor, pass: &Pass) -> Result<Tensor> {
        let device = logits.device();
        let [m, l] = *logits.dims() else { return logits.sum() };
        let tasks = &pass.labels.tasks;
        let known = |task: &Option<Arc<str>>| f32::from(u8::from(task.is_some()));
        let own = |task: &Option<Arc<str>>| match task {
            Some(label) => f32::from(u8::from(!self.generic.iter().any(|generic| **generic == **label))),
            None => 0.0,
        };
        let of_samples: Vec<f32> = tasks.iter().flat_map(|task| [known(task), own(task)]).collect();
        let of_samples = Tensor::from_f32(device, &[tasks.len(), 2], &of_samples)?;
        let rows = of_samples.gather_rows(&pass.sample_of_rows(device, tasks.len(), m)?)?;
        let column = |which: u32| rows.pick(&Tensor::from_u32(device, &[m, 1], &vec![which; m])?);
        let mut counts = column(0)?;
        if let Some((valid, _)) = &pass.valid {
            counts = counts.mul(valid)?;
        }
        let each = logits.softplus()?.sub(&logits.mul(&column(1)?)?)?.mul(&counts)?;
        let share = counts.sum()?.power(-1.0, 1e-10)?;
        each.reshape(&[m * l])?.sum()?.mul(&share)
    }
}

impl Router for OneGate {
    const UNIT: Routes = Routes::Token;

    fn pool(&self) -> (usize, usize) {
        (1, self.rank)
    }

    fn chooses(&self) -> bool {
        false
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let m = x.shape().rows();
        let rows = x.reshape(&[m, x.shape().last()])?;
        let bias = self.bias.tensor().reshape(&[self.linears])?;
        let logits = rows.matmul_nt(&self.router.tensor())?.add(&bias)?;
        if ask.pass.train && self.coefficient > 0.0 && !ask.pass.labels.tasks.is_empty() {
            ask.pass.add_aux(self.loss(&logits, ask.pass)?.scale(self.coefficient)?);
        }
        let gates = logits.sigmoid()?.reshape(&[m, self.linears, 1])?;
        Selection::dense(gates, None, &ask.pass.units, self.rank)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.router.clone(), self.bias.clone()]
    }
}

impl MethodOptions for Personal {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn needs_tasks(&self) -> bool {
        self.gate_loss_coef > 0.0
    }
    fn rule(&self) -> Rule {
        Rule { score: Score::Sigmoid, select: Select::All, gate: Gate::Score }
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::Yes
    }
    fn row_memory(&self) -> RowMemory {
        RowMemory { per_linear: 2.0 * self.lora.r as f64 + 6.0, ..RowMemory::ROUTED }
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        at.site.fits("r", self.lora.r)?;
        let router = OneGate {
            linears: at.site.linears.len(),
            rank: self.lora.r,
            coefficient: self.gate_loss_coef / at.site.all.max(1) as f32,
            generic: self.generic_tasks.0.clone(),
            router: at.inputs("router", 1)?,
            bias: Param::drawn(at.device, at.site.parts("router_bias", 1), 1, true, |_, n| vec![0.0; n])?,
        };
        RoutedLinears::of_experts(self, at, router)
    }
}
