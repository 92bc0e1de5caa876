//! `lora`: one low-rank update for every input (Hu et al. 2021, arXiv:2106.09685).
//!
//! In the terms of the operator: a mixture of one expert of rank r, so there is nothing to route.

use super::spec::{Hook, LinearSite, MethodSpec};
use super::{MethodConfig, Selection};
use crate::nn::{LinearAdapter, Param, Pass};
use crate::ops::mixture_linears::mixture_linears;
use crate::{Device, Linear, Result, Stream, Tensor};
use std::sync::Arc;

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "lora",
    paper: "Hu et al. 2021, arXiv:2106.09685",
    hook: Hook::Linear,
    trainable: "r (d_in + d_out)",
    mergeable: true,
    defaults: || MethodConfig { r: 16, ..MethodConfig::default() },
    check: |_| Ok(()),
    router_without_gradient: |_| None,
    alpha: |c| 2 * c.r,
    has_router: false,
    linear: |c, site, device, stream| Ok(Arc::new(Lora::new(c, site, device, stream)?)),
    mlp: None,
};

pub(super) struct Lora {
    site: LinearSite,
    scale: f32,
    dropout: f32,
    r: usize,
    /// `[L * r, d_in]`
    lora_a: Param,
    /// One `[r, d_out]` per linear.
    lora_b: Vec<Param>,
}

impl Lora {
    pub fn new(c: &MethodConfig, site: &LinearSite, device: &Device, stream: Stream) -> Result<Self> {
        site.fits("r", c.r)?;
        let bound = 1.0 / (site.d_in as f32).sqrt();
        let draw = |name: &str, n| stream.named(name).uniform_vec(n, bound);
        Ok(Lora {
            site: site.clone(),
            scale: c.scaling(c.r),
            dropout: c.lora_dropout,
            r: c.r,
            lora_a: Param::drawn(device, site.parts("lora_a", c.r), site.d_in, true, draw)?,
            lora_b: zero_pools(device, site, "lora_b", c.r)?,
        })
    }
}

/// A pool `[rows, d_out]` of zeros for every linear: an adapter starts as no change at all.
pub(super) fn zero_pools(device: &Device, site: &LinearSite, what: &str, rows: usize) -> Result<Vec<Param>> {
    let parts = site.parts(what, rows).into_iter().zip(&site.linears);
    parts.map(|((name, _), (_, out))| Param::new(name, Tensor::zeros(device, &[rows, *out])?, true)).collect()
}

impl LinearAdapter for Lora {
    fn forward(&self, x: &Tensor, linears: &[Linear], pass: &Pass) -> Result<Vec<Tensor>> {
        let (l, g) = (self.site.linears.len(), pass.units.count());
        let only = Tensor::from_u32(x.device(), &[l, 1, g, 1], &vec![0; l * g])?;
        let s = Selection::new(only, None, &pass.units, 1, self.r)?;
        let b: Vec<Tensor> = self.lora_b.iter().map(Param::tensor).collect();
        let dropout = pass.dropout(&self.site.name, self.dropout);
        mixture_linears(x, linears, &self.lora_a.tensor(), &b, &s, self.scale, dropout)
    }

    fn params(&self) -> Vec<Param> {
        std::iter::once(self.lora_a.clone()).chain(self.lora_b.clone()).collect()
    }
}
