//! Every rank of one LoRA is an expert, and each token gets `top_k` of them: the layer behind `smora`, `rank-wise`
//! and `flylora`, which differ in how they score and gate.

use super::MethodConfig;
use super::balance::BiasBalance;
use super::lora::zero_pools;
use super::spec::{LinearSite, PartShape, part};
use crate::nn::{LinearAdapter, Param, Pass};
use crate::ops::mixture_linears::mixture_linears;
use crate::ops::topk_routing::{Routing, Score, route_rows};
use crate::{Device, Linear, Result, Stream, Tensor};

pub(super) struct RankExperts {
    site: LinearSite,
    scale: f32,
    dropout: f32,
    routing: Routing,
    /// `[L * r, d_in]`
    a: Param,
    /// One `[r, d_out]` per linear.
    b: Vec<Param>,
    /// `[L * r, d_in]`; none where the products with A are the scores themselves.
    router: Option<Param>,
    balance: Option<BiasBalance>,
}

pub(super) fn check(c: &MethodConfig) -> Result<()> {
    MethodConfig::choose(("top_k", c.top_k), ("r", c.r))
}

/// The pools of both sides.
pub(super) fn parts(c: &MethodConfig, site: &LinearSite) -> Vec<PartShape> {
    [site.inputs("lora_a", c.r), site.outputs("lora_b", c.r)].concat()
}

/// The pools and a router.
pub(super) fn routed_parts(c: &MethodConfig, site: &LinearSite) -> Vec<PartShape> {
    [parts(c, site), site.inputs("router", c.r)].concat()
}

/// The balancing bias.
pub(super) fn bias_parts(c: &MethodConfig, site: &LinearSite) -> Vec<PartShape> {
    let shape = |(n, _): &(String, usize)| PartShape { name: part(n, "bias"), rows: 1, cols: c.r };
    site.linears.iter().map(shape).collect()
}

impl RankExperts {
    /// The layer with trained A and its own router.
    pub fn routed(
        c: &MethodConfig,
        site: &LinearSite,
        device: &Device,
        stream: Stream,
        routing: Routing,
        scale: f32,
    ) -> Result<Self> {
        let bound = 1.0 / (site.d_in as f32).sqrt();
        let draw = |name: &str, n| stream.named(name).uniform_vec(n, bound);
        let a = Param::drawn(device, site.parts("lora_a", c.r), site.d_in, true, draw)?;
        let router = Param::drawn(device, site.parts("router", c.r), site.d_in, true, draw)?;
        Self::with(c, site, device, routing, scale, a, Some(router))
    }

    /// The layer around a given A. Scores other than logits have a balancing bias, which starts at 0.
    pub fn with(
        c: &MethodConfig,
        site: &LinearSite,
        device: &Device,
        routing: Routing,
        scale: f32,
        a: Param,
        router: Option<Param>,
    ) -> Result<Self> {
        // The pool may hold more ranks than one update can use.
        site.fits("top_k", c.top_k)?;
        let l = site.linears.len();
        let balance = match routing.score {
            Score::Logits => None,
            _ => {
                let zeros = Tensor::zeros(device, &[l, c.r])?;
                Some(BiasBalance::new(Param::stacked(site.parts("bias", 1), zeros, false)?, c.bias_lr))
            }
        };
        let b = zero_pools(device, site, "lora_b", c.r)?;
        Ok(RankExperts { site: site.clone(), scale, dropout: c.lora_dropout, routing, a, b, router, balance })
    }
}

impl LinearAdapter for RankExperts {
    fn forward(&self, x: &Tensor, linears: &[Linear], pass: &Pass) -> Result<Vec<Tensor>> {
        let (tokens, l) = (x.shape().rows(), self.site.linears.len());
        let rows = x.reshape(&[tokens, x.shape().last()])?;
        let a = self.a.tensor();
        let bias = self.balance.as_ref().map(|b| b.bias.value());
        let forced = pass.choices.forced(&self.site.name)?;
        // Without a router the products with A are the scores.
        let router = self.router.as_ref().map_or_else(|| a.clone(), Param::tensor);
        let s = route_rows(&rows, &router, l, bias.as_ref(), forced.as_ref(), &self.routing)?;
        pass.choices.keep(&self.site.name, &s);
        if let Some(balance) = &self.balance {
            balance.count(s.idx(), pass)?;
        }
        let b: Vec<Tensor> = self.b.iter().map(Param::tensor).collect();
        let dropout = pass.dropout(&self.site.name, self.dropout);
        mixture_linears(x, linears, &a, &b, &s, self.scale, dropout)
    }

    fn params(&self) -> Vec<Param> {
        let mut all = vec![self.a.clone()];
        all.extend(self.b.clone());
        all.extend(self.router.clone());
        all.extend(self.balance.as_ref().map(|b| b.bias.clone()));
        all
    }

    fn after_step(&self) -> Result<()> {
        self.balance.as_ref().map_or(Ok(()), BiasBalance::step)
    }
}
