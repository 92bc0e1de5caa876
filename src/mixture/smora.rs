//! `smora`: every rank an expert, sigmoid scores with a balancing bias (arXiv:2501.15103, as its code has it).
//!
//! `q = sigmoid(W_r x) + d`; the k largest; gates `k q / sum of the chosen q`; scale alpha / k.

use super::MethodConfig;
use super::spec::{Hook, MethodSpec};
use super::token::{self, RankExperts};
use crate::ops::topk_routing::{Routing, Score};
use std::sync::Arc;

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "smora",
    paper: "SMoRA, arXiv:2501.15103",
    hook: Hook::Linear,
    trainable: "r (d_in + d_out) + r d_in",
    mergeable: false,
    defaults: || MethodConfig {
        r: 64,
        top_k: 8,
        lora_alpha: Some(16.0),
        gated: true,
        bias_lr: 1e-5,
        ..MethodConfig::default()
    },
    check: token::check,
    router_without_gradient: |c| (c.top_k == 1).then_some("with top_k = 1 the only gate is always 1"),
    alpha: |c| 2 * c.r,
    has_router: true,
    linear: |c, site, device, stream| {
        let routing = Routing { score: Score::Sigmoid, gated: true, ..Routing::new(c.top_k) };
        let scale = c.scaling(c.top_k);
        Ok(Arc::new(RankExperts::routed(c, site, device, stream, routing, scale)?))
    },
    mlp: None,
};
