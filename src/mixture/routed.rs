//! Groups of linears with a mixture: one layer for every router.

use super::router::{Router, decide};
use super::{LinearBuild, LinearSite, MethodOptions, mixture_linears};
use crate::nn::{LinearAdapter, Param, Pass};
use crate::{Linear, Result, Tensor};
use std::sync::Arc;

/// Linears whose update is a mixture that a router chooses:
/// `y = W x + bias + scale sum_k g_k (a_{I_k} . x) b_{J_k}`.
pub struct RoutedLinears<R> {
    site: LinearSite,
    router: R,
    /// `[L * pool, d_in]`
    a: Param,
    /// One `[pool, d_out]` per linear.
    b: Vec<Param>,
    scale: f32,
    dropout: f32,
}

impl<R: Router + 'static> RoutedLinears<R> {
    /// The layer of a method around its pools and its router, scaled and with the dropout that its options say.
    pub fn adapter(
        options: &dyn MethodOptions,
        at: &LinearBuild<'_>,
        router: R,
        a: Param,
        b: Vec<Param>,
    ) -> Arc<dyn LinearAdapter> {
        let dropout = options.lora().lora_dropout;
        Arc::new(RoutedLinears { site: at.site.clone(), router, a, b, scale: options.scale(), dropout })
    }
}

impl<R: Router + 'static> RoutedLinears<R> {
    /// The layer of a method with fresh LoRA experts, as many and of the rank that its router says.
    ///
    /// # Errors
    /// The device has no memory for the pools.
    pub fn of_experts(
        options: &dyn MethodOptions,
        at: &LinearBuild<'_>,
        router: R,
    ) -> Result<Arc<dyn LinearAdapter>> {
        Self::of_experts_scaled(options, at, router, options.scale())
    }

    /// The same with a scale of its own.
    ///
    /// # Errors
    /// As [`of_experts`](RoutedLinears::of_experts).
    pub fn of_experts_scaled(
        options: &dyn MethodOptions,
        at: &LinearBuild<'_>,
        router: R,
        scale: f32,
    ) -> Result<Arc<dyn LinearAdapter>> {
        let (experts, rank) = router.pool();
        let a = at.inputs("lora_a", experts * rank)?;
        let b = at.outputs("lora_b", experts * rank)?;
        let dropout = options.lora().lora_dropout;
        Ok(Arc::new(RoutedLinears { site: at.site.clone(), router, a, b, scale, dropout }))
    }
}

impl<R: Router> LinearAdapter for RoutedLinears<R> {
    fn forward(&self, x: &Tensor, linears: &[Linear], pass: &Pass) -> Result<Vec<Tensor>> {
        let choice = decide(&self.router, &self.site.name, x, pass)?;
        let b: Vec<Tensor> = self.b.iter().map(Param::tensor).collect();
        let dropout = pass.dropout(&self.site.name, self.dropout);
        mixture_linears(x, linears, &self.a.tensor(), &b, &choice, self.scale, dropout)
    }

    fn params(&self) -> Vec<Param> {
        let pools = std::iter::once(self.a.clone()).chain(self.b.clone());
        pools.chain(self.router.params()).collect()
    }

    fn after_step(&self) -> Result<()> {
        self.router.after_step()
    }
}
