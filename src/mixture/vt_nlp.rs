//! `vt-nlp`: Conditional MixLoRA as its authors released it: the sum-product condition, pooling over every
//! position with padding and answer, routing anew in every decoding step, alpha = 2E.

use super::spec::{Hook, MethodSpec};
use super::{CfsForm, DecodeRoute, MethodConfig, Pool, conditional, mixlora_cond};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "vt-nlp",
    paper: "VT-NLP/MixLoRA at af5cc3f, Shen et al. 2024",
    hook: Hook::Linear,
    trainable: "E (d_in + d_out)",
    mergeable: false,
    defaults: || MethodConfig {
        cfs_form: Some(CfsForm::SumProduct),
        pool: Pool::All,
        decode_route: DecodeRoute::PerStep,
        lora_dropout: 0.05,
        ..MethodConfig::default()
    },
    check: mixlora_cond::SPEC.check,
    router_without_gradient: mixlora_cond::SPEC.router_without_gradient,
    alpha: |c| 2 * c.num_factors,
    has_router: true,
    linear: conditional::build,
    mlp: None,
};
