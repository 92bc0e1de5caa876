//! `flylora`: a frozen sparse random A, of whose products each token keeps the k largest; B is trained.
//!
//! `z = A x`; the k largest `|z + d|`; `y = W x + (alpha/r) B (z on the chosen ranks)`. There is no router to
//! train: the activations choose, and the bias d keeps ranks in use.

use super::MethodConfig;
use super::spec::{Hook, LinearSite, MethodSpec};
use super::token::{self, RankExperts};
use crate::nn::Param;
use crate::ops::topk_routing::{Routing, Score};
use crate::{Device, Result, Stream};
use std::sync::Arc;

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "flylora",
    paper: "FlyLoRA, NeurIPS 2025",
    hook: Hook::Linear,
    trainable: "r d_out",
    mergeable: false,
    defaults: || MethodConfig { r: 32, top_k: 8, ..MethodConfig::default() },
    check: token::check,
    router_without_gradient: |_| None,
    alpha: |c| 2 * c.r,
    has_router: false,
    linear: |c, site, device, stream| {
        let routing = Routing { score: Score::Magnitude, ..Routing::new(c.top_k) };
        let scale = c.scaling(c.r);
        let a = sparse_a(c, site, device, stream)?;
        Ok(Arc::new(RankExperts::with(c, site, device, routing, scale, a, None)?))
    },
    mlp: None,
};

/// Each row has `density * d_in` entries that are not zero, normal with standard deviation 1/r.
fn sparse_a(c: &MethodConfig, site: &LinearSite, device: &Device, stream: Stream) -> Result<Param> {
    let d = site.d_in;
    let filled = ((d as f32 * c.density) as usize).clamp(1, d.max(1));
    Param::drawn(device, site.parts("lora_a", c.r), d, false, |name, n| {
        let s = stream.named(name);
        let (place, value) = (s.fork(1), s.fork(2).normal_vec(n, 1.0 / c.r as f32));
        let mut a = vec![0.0; n];
        for row in 0..n / d.max(1) {
            // The columns with the smallest random keys: a sample without replacement.
            let mut keys: Vec<(u32, usize)> =
                (0..d).map(|i| (place.bits((row * d + i) as u32), row * d + i)).collect();
            keys.sort_unstable();
            keys[..filled].iter().for_each(|&(_, i)| a[i] = value[i]);
        }
        a
    })
}
