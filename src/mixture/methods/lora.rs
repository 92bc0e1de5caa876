//! `lora`: one low-rank update for every input (Hu et al. 2021, arXiv:2106.09685).
//!
//! In the terms of the operator: a mixture of one expert of rank r, so there is nothing to route.

use crate::mixture::routers::Single;
use crate::mixture::{
    Axes, Files, LinearBuild, Lora, MethodOptions, MethodSpec, RoutedLinears, RouterGradient, Routes,
};
use crate::nn::LinearAdapter;
use crate::{Result, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "lora",
    paper: "Hu et al. 2021, arXiv:2106.09685",
    when: "a first run, or a result that must merge, or load in PEFT and llama.cpp",
    equation: "y = W x + s B A x, s = lora_alpha / r",
    axes: Axes { input: "-", entry: "LoRA of rank r", balance: "none", trained: "all" },
    routes: Routes::None,
    trainable: "r (d_in + d_out)",
    mergeable: true,
    files: Files::Peft,
    options: || Box::new(PlainLora::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `lora`.
    pub struct PlainLora use [lora: Lora] {}
}

impl MethodOptions for PlainLora {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::NoRouter
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        adapter(self, at)
    }
}

/// A plain LoRA at a group of linears, also for methods whose own hook is elsewhere.
pub(super) fn adapter(options: &dyn MethodOptions, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
    let rank = options.lora().r;
    at.site.fits("r", rank)?;
    let router = Single { linears: at.site.linears.len(), rank };
    Ok(RoutedLinears::adapter(options, at, router, at.inputs("lora_a", rank)?, at.outputs("lora_b", rank)?))
}
