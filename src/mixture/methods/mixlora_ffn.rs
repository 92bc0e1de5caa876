//! `mixlora-ffn`: token-level experts inside one shared, frozen gated MLP block (MixLoRA, arXiv:2404.15159). Other
//! linears get a plain LoRA.

use super::lora;
use crate::mixture::routers::{ExpertChoice, ExpertLosses, TokenExperts};
use crate::mixture::{
    AuxLoss, Axes, Experts, Gate, Hook, LinearBuild, Lora, MethodOptions, MethodSpec, MlpBuild, RoutedMlp,
    RouterGradient, Routes, RowMemory, Rule, Score, Select, TopK, Tree, enough,
};
use crate::nn::{LinearAdapter, MlpAdapter};
use crate::{Result, options, words};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "mixlora-ffn",
    paper: "MixLoRA (TUDB), arXiv:2404.15159",
    when: "a choice per token: whole LoRA experts in the MLP blocks",
    equation: "y = sum over the chosen of g_e E_e(x), E_e the block with a LoRA at gate, up and down\ntopk: g the softmax over the k best; dynamic: g = p until top_p; switch: g = p of the best while it has room",
    differs: "The inference path of the variant switch computes its experts (the release returns the block's input). Losses leave padding out.",
    axes: Axes {
        input: "the block's input",
        entry: "MLP block with LoRAs",
        balance: "Switch loss",
        trained: "all",
    },
    hook: Hook::Mlp,
    routes: Routes::Token,
    trainable: "3 E r (hidden + ffn) + E hidden; r (d_in + d_out) elsewhere",
    options: || Box::new(MixloraFfn::default()),
    ..MethodSpec::PLAIN
};

words! {
    /// Which experts a token gets.
    pub enum Variant {
        /// The `top_k` best.
        TopK = "topk",
        /// The best until their probabilities exceed `top_p`; gates are the probabilities.
        Dynamic = "dynamic",
        /// The best one while it has room; other tokens keep their input.
        Switch = "switch",
    }
}

options! {
    /// Options of `mixlora-ffn`.
    pub struct MixloraFfn use [lora: Lora, experts: Experts, choice: TopK, balance: AuxLoss] {
        /// Which experts a token gets.
        variant: Variant = Variant::TopK, "arXiv:2404.15159";
        /// Probability that the experts of a token exceed together; variant dynamic.
        top_p: f32 = 0.8, in 0.0..=1.0, "TUDB-Labs/MixLoRA";
        /// Tokens of a sequence that an expert has room for; variant switch.
        expert_capacity: usize = 32, in 1.0.., "TUDB-Labs/MixLoRA";
        /// How far from 1 the factors on the router's input are in training; variant switch.
        jitter: f32 = 0.01, in 0.0..1.0, "TUDB-Labs/MixLoRA";
        /// Coefficient of the mean squared log-sum of the logits; variant switch.
        z_loss_coef: f32 = 1e-3, in 0.0.., "TUDB-Labs/MixLoRA";
    }
}

impl MixloraFfn {
    /// Experts that are computed for each token.
    fn computed(&self) -> usize {
        match self.variant {
            Variant::TopK => self.choice.top_k,
            Variant::Dynamic => self.experts.num_experts,
            Variant::Switch => 1,
        }
    }
}

impl MethodOptions for MixloraFfn {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn check(&self) -> Result<()> {
        match self.variant {
            Variant::TopK => enough(("top_k", self.choice.top_k), ("num_experts", self.experts.num_experts)),
            _ => Ok(()),
        }
    }
    fn rule(&self) -> Rule {
        match self.variant {
            Variant::TopK => Rule::top_k(self.choice.top_k, Gate::Softmax),
            Variant::Dynamic => Rule { score: Score::Softmax, select: Select::TopP, gate: Gate::Score },
            Variant::Switch => Rule { score: Score::Softmax, select: Select::TopK(1), gate: Gate::Score },
        }
    }
    fn active_share(&self) -> f64 {
        self.choice.top_k as f64 / self.experts.num_experts as f64
    }
    fn router_gradient(&self) -> RouterGradient {
        match (self.variant, self.choice.top_k) {
            (Variant::TopK, 1) => RouterGradient::No(
                "with top_k = 1 the only gate is always 1; the balance loss alone trains it",
            ),
            _ => RouterGradient::Yes,
        }
    }
    fn row_memory(&self) -> RowMemory {
        let k = self.computed() as f64;
        // The router and the experts read the block's input; with dropout on a branch its input is kept too.
        let inputs = if self.lora.lora_dropout > 0.0 { 2.0 } else { 1.0 };
        RowMemory {
            per_linear: self.lora.r as f64 * k,
            gate_up: k,
            hidden: inputs,
            product: inputs * k,
            ..RowMemory::PLAIN
        }
    }
    fn variants(&self, _: &[usize], _: usize) -> Vec<(String, Tree)> {
        let name = format!("E {} r {} top {}", self.experts.num_experts, self.lora.r, self.choice.top_k);
        vec![(name, Tree::new())]
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        lora::adapter(self, at)
    }
    fn mlp(&self, at: &MlpBuild<'_>) -> Result<Option<Arc<dyn MlpAdapter>>> {
        let chosen = match self.variant {
            Variant::TopK => ExpertChoice::TopK(self.choice.top_k),
            Variant::Dynamic => ExpertChoice::TopP(self.top_p),
            Variant::Switch => ExpertChoice::Switch { capacity: self.expert_capacity, jitter: self.jitter },
        };
        let switch = self.variant == Variant::Switch;
        let z = if switch { self.z_loss_coef } else { 0.0 };
        let losses = ExpertLosses { balance: self.balance.aux_loss_coef, z };
        // The release starts the router of its variant switch further from 0.
        let std = if switch { 1.0 } else { 0.02 };
        let sizes = [self.experts.num_experts, self.lora.r];
        let router = TokenExperts::new(at, sizes, chosen, losses, std)?;
        RoutedMlp::adapter(self, at, router).map(Some)
    }
}
