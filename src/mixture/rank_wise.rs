//! `rank-wise`: every rank an expert, softmax gates over the chosen logits: the plain relative of `smora`.

use super::MethodConfig;
use super::spec::{Hook, MethodSpec};
use super::token::{self, RankExperts};
use crate::ops::topk_routing::Routing;
use std::sync::Arc;

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "rank-wise",
    paper: "after SMoRA, arXiv:2501.15103 (softmax gates: this project)",
    hook: Hook::Linear,
    trainable: "r (d_in + d_out) + r d_in",
    mergeable: false,
    defaults: || MethodConfig { r: 64, top_k: 8, gated: true, ..MethodConfig::default() },
    check: token::check,
    router_without_gradient: |c| match (c.gated, c.top_k) {
        (false, _) => Some("chosen ranks are not scaled by gates"),
        (true, 1) => Some("with top_k = 1 the only gate is always 1"),
        _ => None,
    },
    alpha: |c| 2 * c.r,
    has_router: true,
    linear: |c, site, device, stream| {
        let routing = Routing { gated: c.gated, ..Routing::new(c.top_k) };
        let scale = c.scaling(c.r);
        Ok(Arc::new(RankExperts::routed(c, site, device, stream, routing, scale)?))
    },
    mlp: None,
};
