//! `peam`: a LoRA for each category, of which a sample gets that of its own; the others stay as they are, to the bit (PEAM,
//! arXiv:2605.27762).
//!
//! `y = W x + s B_t A_t x` for samples of category t. To the loss of what was right comes, for samples that also say what was
//! wrong, `contrast_coef mean softplus(-(log p(right) - log p(wrong)) / contrast_tau)`.

use crate::mixture::{
    Ask, Axes, LinearBuild, List, Lora, MethodOptions, MethodSpec, Preference, RoutedLinears, Router,
    RouterGradient, Routes, RowMemory, Selection, Tasks, Tree,
};
use crate::nn::{LinearAdapter, Param};
use crate::{Error, Result, Tensor, options};
use serde_json::json;
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "peam",
    paper: "PEAM, arXiv:2605.27762",
    when: "categories that must never disturb each other, learned from what was corrected",
    equation: "y = W x + s B_t A_t x for samples of category t\nloss: -log p(right), and contrast_coef mean softplus(-(log p(right) - log p(wrong)) / contrast_tau)",
    differs: "The form of the contrast, and when to train, are ours: the paper was not to be had.",
    axes: Axes {
        input: "the task's label",
        entry: "LoRA of rank r, one for each task",
        balance: "none",
        trained: "the LoRAs of the tasks in `training`",
    },
    routes: Routes::Task,
    trainable: "T r (d_in + d_out), T the tasks in training",
    options: || Box::new(Peam::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `peam`.
    pub struct Peam use [lora: Lora { r: 8 }, tasks: Tasks, preference: Preference { contrast_coef: 0.1 }] {
        /// The tasks whose LoRAs are trained, the others stay as they are; empty: all. A run in stages names that of the
        /// stage.
        training: List<String> = List(Vec::new());
    }
}

/// Gives each sample the LoRA of its task.
struct OfTask {
    linears: usize,
    rank: usize,
    tasks: Tasks,
}

impl Router for OfTask {
    const UNIT: Routes = Routes::Task;

    fn pool(&self) -> (usize, usize) {
        (self.tasks.tasks.0.len().max(1), self.rank)
    }

    /// Nothing is chosen: the label says it.
    fn chooses(&self) -> bool {
        false
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let numbers = self.tasks.numbers(ask.pass)?;
        let samples = numbers.len();
        let units = ask.pass.units_of_samples(x.device(), samples, x.shape().rows())?;
        let of_linear: Vec<u32> = numbers.iter().map(|&number| number as u32).collect();
        let idx =
            Tensor::from_u32(x.device(), &[self.linears, 1, samples, 1], &of_linear.repeat(self.linears))?;
        let (experts, rank) = self.pool();
        Selection::new(idx, None, &units, experts, rank)
    }
}

impl MethodOptions for Peam {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn check(&self) -> Result<()> {
        match self.training.0.iter().find(|task| !self.tasks.tasks.0.contains(task)) {
            Some(task) if !self.tasks.tasks.0.is_empty() => {
                Err(Error::config("training", task, format!("one of {}", self.tasks.tasks.0.join(", "))))
            }
            _ => Ok(()),
        }
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::NoRouter
    }
    fn tasks(&self) -> Option<&Tasks> {
        Some(&self.tasks)
    }
    fn preference(&self) -> Option<&Preference> {
        Some(&self.preference)
    }
    fn at_stage(&self, _stage: usize, task: Option<&str>) -> Tree {
        Tree::from_iter(task.map(|task| ("training".to_string(), json!([task]))))
    }
    fn row_memory(&self) -> RowMemory {
        RowMemory { per_linear: self.lora.r as f64, ..RowMemory::PLAIN }
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let r = self.lora.r;
        at.site.fits("r", r)?;
        let tasks = &self.tasks.tasks.0;
        let router = OfTask { linears: at.site.linears.len(), rank: r, tasks: self.tasks.clone() };
        let (experts, _) = router.pool();
        let a = at.inputs("lora_a", experts * r)?;
        let b = at.outputs("lora_b", experts * r)?;
        let stays = |task: &&String| !self.training.0.is_empty() && !self.training.0.contains(task);
        for (number, _) in tasks.iter().enumerate().filter(|(_, task)| stays(task)) {
            freeze(std::slice::from_ref(&a), number * r, r)?;
            freeze(&b, number * r, r)?;
        }
        Ok(RoutedLinears::adapter(self, at, router, a, b))
    }
}

/// Freezes rows of every part.
fn freeze(params: &[Param], first: usize, rows: usize) -> Result<()> {
    for param in params {
        for (part, _) in param.parts() {
            param.freeze_rows(part, first..first + rows)?;
        }
    }
    Ok(())
}
