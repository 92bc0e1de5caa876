//! `flylora`: a frozen sparse random A, of whose products each token keeps the k largest; B is trained.
//!
//! `z = A x`; the k largest `|z + d|`; `y = W x + (alpha/r) B (z on the chosen ranks)`. There is no router to
//! train: the activations choose, and the bias d keeps ranks in use.

use crate::mixture::routers::TokenRanks;
use crate::mixture::{
    Axes, Beside, BiasBalance, Gate, LinearBuild, Lora, MethodOptions, MethodSpec, Prunes, RoutedLinears,
    RouterGradient, Routes, RowMemory, Rule, Score, Sparse, TopK, enough,
};
use crate::nn::{LinearAdapter, Param};
use crate::{Result, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "flylora",
    paper: "FlyLoRA, NeurIPS 2025",
    when: "few trained values and no router",
    equation: "u = A x, A frozen and sparse; y = W x + s sum over the top k of |u + d| of u_i b_i",
    axes: Axes {
        input: "the entry's own activation",
        entry: "rank-1 row",
        balance: "bias without gradient",
        trained: "B",
    },
    routes: Routes::Token,
    trainable: "r d_out",
    options: || Box::new(FlyLora::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `flylora`.
    pub struct FlyLora use [lora: Lora { r: 32 }, choice: TopK { top_k: 8 }, balance: BiasBalance, sparse: Sparse] {}
}

impl MethodOptions for FlyLora {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn check(&self) -> Result<()> {
        enough(("top_k", self.choice.top_k), ("r", self.lora.r))
    }
    fn rule(&self) -> Rule {
        Rule { score: Score::Magnitude, ..Rule::top_k(self.choice.top_k, Gate::None) }
    }
    fn active_share(&self) -> f64 {
        self.choice.top_k as f64 / self.lora.r as f64
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::NoRouter
    }
    fn prunes(&self) -> Prunes {
        Prunes::pairs("r", vec![("bias", Beside::Columns)])
    }
    fn row_memory(&self) -> RowMemory {
        // The scores are products with A, which is not trained: no gradient needs those that are not chosen.
        RowMemory { per_linear: 3.0 * self.choice.top_k as f64, ..RowMemory::PLAIN }
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let a = sparse_rows(at, self.lora.r, self.sparse.density)?;
        let router = TokenRanks::by_activation(at, self.lora.r, self.rule(), self.balance.bias_lr, &a)?;
        Ok(RoutedLinears::adapter(self, at, router, a, at.outputs("lora_b", self.lora.r)?))
    }
}

/// Frozen rows of which each has `density * d_in` entries that are not zero, normal with standard deviation 1/r.
fn sparse_rows(at: &LinearBuild<'_>, r: usize, density: f32) -> Result<Param> {
    let d = at.site.d_in;
    let filled = ((d as f32 * density) as usize).clamp(1, d.max(1));
    Param::drawn(at.device, at.site.parts("lora_a", r), d, false, |name, n| {
        let stream = at.stream.named(name);
        let place = stream.fork(1);
        let value = stream.fork(2).normal_vec(n, 1.0 / r as f32);
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
