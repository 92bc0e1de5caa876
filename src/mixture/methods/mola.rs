//! `mola`: LoRA experts at every linear, in numbers and ranks that change with the depth (arXiv:2402.08562).
//!
//! `y = W x + s sum over the top k of g_e B_e A_e x`, gates the softmax over the chosen. A list such as `2, 4, 6, 8` gives the
//! first quarter of the layers 2 experts, the last one 8.

use crate::mixture::losses::switch_loss;
use crate::mixture::routers::{ChoiceLoss, Chosen, TokenLoras};
use crate::mixture::{
    AuxLoss, Axes, Depth, Gate, LinearBuild, List, Lora, MethodOptions, MethodSpec, RoutedLinears,
    RouterGradient, Routes, RowMemory, Rule, TemperatureSchedule, TopK, TopKSchedule,
};
use crate::nn::LinearAdapter;
use crate::{Error, Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "mola",
    paper: "MoLA, arXiv:2402.08562",
    when: "more experts in the layers that need them",
    equation: "y = W x + s sum over the top k of g_e B_e A_e x, E and r of the layer; g the softmax over the chosen",
    differs: "Each linear has a balance loss of its own; the release joins the logits of a layer's linears first.",
    axes: Axes {
        input: "the linear's input",
        entry: "LoRA of rank r, in numbers by depth",
        balance: "normalised Switch loss",
        trained: "all",
    },
    routes: Routes::Token,
    trainable: "E r (d_in + d_out) + E d_in, E and r of the layer",
    options: || Box::new(Mola::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `mola`.
    pub struct Mola use [
        lora: Lora { r: 8, lora_dropout: 0.05 },
        choice: TopK,
        balance: AuxLoss { aux_loss_coef: 0.001 },
    ] {
        /// Experts by depth: one number for each layer, or for each of as many parts of equal size.
        experts_by_layer: List<usize> = List(vec![2, 4, 6, 8]), "arXiv:2402.08562";
        /// Ranks of one expert by depth, in the same way; empty: r in all layers.
        ranks_by_layer: List<usize> = List(Vec::new()), "arXiv:2402.08562";
        /// Experts of each token at the start of training, where these are to fall to top_k; absent: top_k from the start.
        top_k_start: Option<usize> = None, in 1.0.., "arXiv:2512.16248";
        /// The step from which each token has top_k experts.
        top_k_until: usize = 0, "arXiv:2512.16248";
        /// Whether the number falls one by one until then, and not at once.
        top_k_linear: bool = true, "arXiv:2512.16248";
    }
}

impl Mola {
    /// The most experts that a token ever has.
    fn most(&self) -> usize {
        self.choice.top_k.max(self.top_k_start.unwrap_or(0))
    }
}

/// The Switch loss with loads that sum to 1.
struct Normalised {
    coefficient: f32,
}

impl ChoiceLoss for Normalised {
    fn coefficient(&self) -> f32 {
        self.coefficient
    }
    fn loss(&self, chosen: &Chosen<'_>) -> Result<Tensor> {
        let [m, l, e] = *chosen.logits.dims() else { return chosen.logits.sum() };
        let tokens = chosen.counted();
        let p = chosen.logits.softmax()?.reshape(&[m, l * e])?;
        let load =
            chosen.load()?.reshape(&[l * e])?.scale(1.0 / chosen.choice.idx().shape().last() as f32)?;
        switch_loss(&tokens.sum(&p)?, &load, e, tokens.count())
    }
}

/// The value of a list at a depth: of as many parts of equal size as it has values.
fn at_depth(list: &[usize], depth: Depth) -> Option<usize> {
    list.get(depth.layer * list.len() / depth.layers.max(1)).copied()
}

impl MethodOptions for Mola {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn check(&self) -> Result<()> {
        let List(experts) = &self.experts_by_layer;
        if experts.is_empty() || experts.iter().any(|&e| e < self.most()) {
            let found = format!("{experts:?}");
            return Err(Error::config(
                "experts_by_layer",
                found,
                format!("numbers of at least top_k and top_k_start ({})", self.most()),
            ));
        }
        let List(ranks) = &self.ranks_by_layer;
        if ranks.contains(&0) {
            return Err(Error::config("ranks_by_layer", format!("{ranks:?}"), "numbers of at least 1"));
        }
        Ok(())
    }
    fn rule(&self) -> Rule {
        Rule::top_k(self.choice.top_k, Gate::Softmax)
    }
    fn router_gradient(&self) -> RouterGradient {
        super::rank_wise::gradient_of_shares(self.choice.top_k)
    }
    fn row_memory(&self) -> RowMemory {
        let k = self.most() as f64;
        let most = self.experts_by_layer.0.iter().max().copied().unwrap_or(1) as f64;
        RowMemory { per_linear: 2.0 * k * self.lora.r as f64 + 2.0 * most, ..RowMemory::ROUTED }
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let depth = at.site.depth;
        let experts = at_depth(&self.experts_by_layer.0, depth).unwrap_or(self.choice.top_k);
        let rank = at_depth(&self.ranks_by_layer.0, depth).unwrap_or(self.lora.r);
        let loss = Normalised { coefficient: self.balance.aux_loss_coef };
        let router = at.inputs("router", experts)?;
        let always = TemperatureSchedule::constant(1.0);
        let choices = self.top_k_start.map(|start| TopKSchedule {
            start,
            target: self.choice.top_k,
            until: self.top_k_until,
            linear: self.top_k_linear,
        });
        let router = TokenLoras::new(at, router, [experts, rank], self.rule(), always, loss)?;
        let router = router.with_choices(choices);
        let scale = self.alpha() / rank as f32;
        RoutedLinears::of_experts_scaled(self, at, router, scale)
    }
}
