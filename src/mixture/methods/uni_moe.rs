//! `uni-moe`: a LoRA on every linear of every expert of a model that is a mixture of experts itself (Uni-MoE, arXiv:2405.11273).
//!
//! `y = sum over the experts that the base's router chooses of g_e MLP_e(x)`, each linear of `MLP_e` being `W x + s B A x`. The router
//! stays as it is, or has a LoRA of its own. Attention gets LoRAs by its target modules.

use super::lora;
use crate::mixture::{Axes, LinearBuild, Lora, MethodOptions, MethodSpec, RouterGradient, Routes, SitePart};
use crate::nn::LinearAdapter;
use crate::{Result, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "uni-moe",
    paper: "Uni-MoE, arXiv:2405.11273",
    when: "a model that is a mixture of experts already: Mixtral, Qwen-MoE",
    equation: "y = sum over the chosen experts of g_e MLP_e(x), its linears W x + s B A x; chosen by the base's router, or by W_r x + s B A x",
    differs: "Its last stage alone, the tuning of the whole mixture; the earlier stages train experts in full. Without its balance loss: \
              a router that stays frozen has no use for one. The share of tokens of each modality that an expert gets is counted by experts_by_tag.",
    axes: Axes {
        input: "the base's own router",
        entry: "LoRA of rank r on each linear of an expert of the base",
        balance: "none",
        trained: "all",
    },
    routes: Routes::None,
    trainable: "r (d_in + d_out), for each linear of each expert",
    mergeable: true,
    options: || Box::new(UniMoe::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `uni-moe`.
    pub struct UniMoe use [lora: Lora { r: 8 }] {
        /// Whether the router of each layer has a LoRA too.
        adapt_router: bool = false, "HITsz-TMG/UMOE-Scaling-Unified-Multimodal-LLMs";
    }
}

impl MethodOptions for UniMoe {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn takes(&self, part: SitePart) -> bool {
        match part {
            SitePart::ExpertRouter => self.adapt_router,
            SitePart::Projector => false,
            _ => true,
        }
    }
    fn router_gradient(&self) -> RouterGradient {
        if self.adapt_router { RouterGradient::Yes } else { RouterGradient::NoRouter }
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        lora::adapter(self, at)
    }
}
