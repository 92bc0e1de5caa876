//! `dynmole`: experts up to a share of the probability, all of them where the router is undecided (arXiv:2504.00661).
//!
//! `p = softmax(W_r x)`, sorted: an expert acts while the sum of p up to and including it is at most `top_p`; the first
//! `top_k` act in any case, and all do where the entropy `H(p)` is above `threshold`. Gates are p as it is.

use crate::mixture::losses::{mean_of_rows, renyi_entropy, tsallis_entropy};
use crate::mixture::routers::{DenseExperts, GateRule, Gated, Scored, dense_memory};
use crate::mixture::{
    AuxLoss, Axes, Experts, Gate, LinearBuild, Lora, MethodOptions, MethodSpec, RoutedLinears,
    RouterGradient, Routes, RowMemory, Rule, Score, Select, TopK,
};
use crate::nn::LinearAdapter;
use crate::ops::select::SelectRule;
use crate::{Result, Tensor, options, words};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "dynmole",
    paper: "DynMoLE, arXiv:2504.00661",
    when: "tokens that need experts in different numbers",
    equation: "y = W x + s sum_e g_e B_e A_e x, g = p where on\non: the sum of p up to and including it <= top_p, or among the first top_k, or H(p) > threshold",
    differs: "The entropy loss leaves padding out, and one expert has the entropy 0.",
    axes: Axes {
        input: "the linear's input",
        entry: "LoRA of rank r",
        balance: "entropy and p times gates",
        trained: "all",
    },
    routes: Routes::Token,
    trainable: "E r (d_in + d_out) + E d_in",
    options: || Box::new(DynMole::default()),
    ..MethodSpec::PLAIN
};

words! {
    /// The entropy that says how undecided a router is.
    pub enum Entropy {
        /// `(1 - sum p^q) / (q - 1)`, over its largest value.
        Tsallis = "tsallis",
        /// `log(sum p^q) / (1 - q)`, over its largest value.
        Renyi = "renyi",
    }
}

options! {
    /// Options of `dynmole`.
    pub struct DynMole use [
        lora: Lora { r: 24, lora_dropout: 0.05 },
        experts: Experts { num_experts: 6 },
        choice: TopK { top_k: 2 },
        balance: AuxLoss { aux_loss_coef: 0.001 },
    ] {
        /// Share of the probability up to which experts act.
        top_p: f32 = 0.75, in 0.0..=1.0, "arXiv:2504.00661";
        /// Entropy above which all experts act, as a share of the largest.
        threshold: f32 = 0.9, in 0.0.., "arXiv:2504.00661";
        /// Which entropy is taken.
        entropy: Entropy = Entropy::Tsallis, "arXiv:2504.00661";
        /// Its index q; 1 is Shannon's entropy.
        entropy_index: f32 = 1.1, in 0.1..=10.0, "arXiv:2504.00661";
        /// Added to p before the power.
        entropy_eps: f32 = 1e-5, in 0.0..=0.1, "mikecovlee/DynMoLE";
        /// Coefficient of the mean entropy, which training lowers.
        entropy_coef: f32 = 0.01, in 0.0.., "arXiv:2504.00661";
    }
}

impl GateRule for DynMole {
    fn chooses(&self) -> bool {
        true
    }
    fn gate(&self, scored: &Scored<'_>) -> Result<Gated> {
        let p = scored.logits.softmax()?;
        let entropy = match self.entropy {
            Entropy::Tsallis => tsallis_entropy(&p, self.entropy_index, self.entropy_eps),
            Entropy::Renyi => renyi_entropy(&p, self.entropy_index, self.entropy_eps),
        }?;
        let mask = match scored.ask.forced {
            Some(mask) => mask.clone(),
            None => self.mask(&p.detach(), &entropy.detach())?,
        };
        let gates = p.mul(&mask)?;
        let tokens = scored.counted();
        scored.add_loss(self.entropy_coef, || mean_of_rows(&entropy, &tokens))?;
        scored.add_loss(self.balance.aux_loss_coef, || {
            let product = tokens.mean(&scored.flat(&gates)?)?.mul(&tokens.mean(&scored.flat(&p)?)?)?;
            product.sum()?.scale(self.experts.num_experts as f32)
        })?;
        Ok(Gated { gates, mask: Some(mask) })
    }
}

impl DynMole {
    /// 1 where an expert acts: by the sum of p, or everywhere in a row of high entropy.
    fn mask(&self, p: &Tensor, entropy: &Tensor) -> Result<Tensor> {
        let rule = SelectRule::TopP { top_p: self.top_p, least: self.choice.top_k, crossing: false };
        let some = p.select(&rule)?;
        let [m, l, _] = *p.dims() else { return Ok(some) };
        let all = entropy.reshape(&[m, l, 1])?.select(&SelectRule::Above(self.threshold))?;
        // some or all: some + (1 - some) all
        let ones = Tensor::full(p.device(), p.dims(), 1.0)?;
        some.add(&ones.sub(&some)?.mul(&all)?)
    }
}

impl MethodOptions for DynMole {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn rule(&self) -> Rule {
        Rule { score: Score::Softmax, select: Select::TopP, gate: Gate::Score }
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
