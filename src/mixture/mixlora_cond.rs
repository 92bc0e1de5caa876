//! `mixlora-cond`: Conditional MixLoRA as published: frozen random routers, chosen factors unscaled.

use super::spec::{Hook, MethodSpec};
use super::{MethodConfig, conditional};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "mixlora-cond",
    paper: "Shen et al. 2024, ACL long.38, arXiv:2402.15896",
    hook: Hook::Linear,
    trainable: "E (d_in + d_out)",
    mergeable: false,
    defaults: MethodConfig::default,
    check: |c| {
        conditional::check(c)?;
        match c.gated {
            true => Err(crate::Error::config("gated", "is true: use the method mixlora-cond-gated")),
            false => Ok(()),
        }
    },
    router_without_gradient: |_| {
        Some("chosen factors are not scaled by gates, so routers stay as drawn (as published)")
    },
    alpha: |c| 2 * c.num_factors,
    has_router: true,
    linear: conditional::build,
    mlp: None,
};
