//! `mixlora-cond-gated`: Conditional MixLoRA whose factors are scaled by their gates, so that the routers learn.

use super::spec::{Hook, MethodSpec};
use super::{MethodConfig, conditional};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "mixlora-cond-gated",
    paper: "after Shen et al. 2024, ACL long.38 (gates: this project)",
    hook: Hook::Linear,
    trainable: "E (d_in + d_out) + E d_in (2 + r)",
    mergeable: false,
    defaults: || MethodConfig { gated: true, ..MethodConfig::default() },
    check: |c| {
        conditional::check(c)?;
        match c.gated {
            true => Ok(()),
            false => Err(crate::Error::config("gated", "is false: use the method mixlora-cond")),
        }
    },
    router_without_gradient: |c| (c.r == 1).then_some("with r = 1 the only gate is always 1"),
    alpha: |c| 2 * c.num_factors,
    has_router: true,
    linear: conditional::build,
    mlp: None,
};
