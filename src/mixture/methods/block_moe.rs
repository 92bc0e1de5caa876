//! `block-moe`: LoRA experts beside a whole MLP block, under a noisy router (Omni-Effects, AMAP-ML).
//!
//! `y = MLP(x) + s sum over the top k of g_e B_e A_e x`, gates the softmax over the chosen of `z = W_r x + n softplus(W_n x)`
//! with normal noise n, at inference too: it is a function of the seed, the site and the token's place.

use crate::mixture::losses::{Counted, switch_loss};
use crate::mixture::site::part;
use crate::mixture::{
    Ask, AuxLoss, Axes, Experts, Gate, Hook, Lora, MethodOptions, MethodSpec, Router, RouterGradient, Routes,
    Routing, RowMemory, Rule, Selection, SitePart, StateBuild, TopK, Units, decide, enough, route,
};
use crate::nn::{BlockAdapter, Param, Pass};
use crate::ops::factor_expand::{expand_by, shrink_by};
use crate::ops::routing_load::routing_load;
use crate::{Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "block-moe",
    paper: "Omni-Effects, AMAP-ML/Omni-Effects",
    when: "MLP blocks that have no linears to adapt, such as those of a mixture of experts",
    equation: "y = MLP(x) + s sum over the top k of g_e B_e A_e x, z = W_r x + n softplus(W_n x), n normal",
    differs: "Omni-Effects adapts transformers for video with top_k = 1; here it stands beside any MLP block, with 2 chosen.",
    axes: Axes {
        input: "the block's input, with noise",
        entry: "LoRA beside the block",
        balance: "Switch loss",
        trained: "all",
    },
    hook: Hook::Block,
    routes: Routes::Token,
    trainable: "2 E r hidden + E hidden (twice with noise)",
    options: || Box::new(BlockMoe::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `block-moe`.
    pub struct BlockMoe use [
        lora: Lora { r: 16 },
        experts: Experts { num_experts: 4 },
        choice: TopK { top_k: 2 },
        balance: AuxLoss,
    ] {
        /// Whether learned noise is added to the logits.
        noisy: bool = true, "AMAP-ML/Omni-Effects";
    }
}

/// Chooses among the experts beside a block.
struct NoisyRouter {
    site: String,
    options: BlockMoe,
    routing: Routing,
    /// `[E, hidden]`
    router: Param,
    router_noise: Option<Param>,
}

impl Router for NoisyRouter {
    const UNIT: Routes = Routes::Token;

    fn pool(&self) -> (usize, usize) {
        (self.options.experts.num_experts, self.options.lora.r)
    }

    fn choose(&self, rows: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let (e, rank) = self.pool();
        let m = rows.shape().rows();
        let mut logits = rows.matmul_nt(&self.router.tensor())?;
        if let Some(noise) = &self.router_noise {
            let drawn = ask.pass.noise(&self.site, rows.device(), &[m, e])?;
            let width = rows.matmul_nt(&noise.tensor())?.softplus()?;
            logits = logits.add(&width.mul(&drawn)?)?;
        }
        let z = logits.reshape(&[m, 1, 1, e])?;
        let choice = route(&z, None, None, ask.forced, &self.routing, &Units::tokens(m), rank)?;
        let coefficient = self.options.balance.aux_loss_coef;
        if ask.pass.train && coefficient > 0.0 {
            let tokens = Counted::of(ask.pass, m);
            let load = routing_load(choice.idx(), e, tokens.weights())?.reshape(&[e])?;
            let loss = switch_loss(&tokens.sum(&logits.softmax()?)?, &load, e, tokens.count())?;
            ask.pass.add_aux(loss.scale(coefficient)?);
        }
        Ok(choice)
    }

    fn params(&self) -> Vec<Param> {
        std::iter::once(self.router.clone()).chain(self.router_noise.clone()).collect()
    }
}

/// Experts beside a block.
struct Beside {
    site: String,
    router: NoisyRouter,
    /// `[E * r, hidden]` each.
    a: Param,
    b: Param,
    scale: f32,
    dropout: f32,
}

impl BlockAdapter for Beside {
    fn forward(
        &self,
        x: &Tensor,
        block: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
        pass: &Pass,
    ) -> Result<Tensor> {
        let m = x.shape().rows();
        let rows = x.reshape(&[m, x.shape().last()])?;
        let choice = decide(&self.router, &self.site, &rows, pass)?;
        let branch = match pass.dropout(&self.site, self.dropout) {
            Some(d) => rows.dropout(d.p, d.stream)?,
            None => rows,
        };
        let mut u = shrink_by(&branch, &self.a.tensor(), &choice)?;
        if let Some(gates) = choice.gates() {
            let k = choice.idx().shape().last();
            u = u.gate_groups(&gates.reshape(&[m, k])?)?;
        }
        let y = block(x)?;
        let flat = y.reshape(&[m, y.shape().last()])?;
        expand_by(flat, &u, &self.b.tensor(), &choice, self.scale)?.reshape(y.dims())
    }

    fn params(&self) -> Vec<Param> {
        self.router.params().into_iter().chain([self.a.clone(), self.b.clone()]).collect()
    }
}

impl MethodOptions for BlockMoe {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    /// The release has alpha = r.
    fn default_alpha(&self) -> f32 {
        self.lora.r as f32
    }
    fn check(&self) -> Result<()> {
        enough(("top_k", self.choice.top_k), ("num_experts", self.experts.num_experts))
    }
    fn rule(&self) -> Rule {
        Rule::top_k(self.choice.top_k, Gate::Softmax)
    }
    fn router_gradient(&self) -> RouterGradient {
        match self.choice.top_k {
            1 => RouterGradient::No(
                "with top_k = 1 the only gate is always 1; the balance loss alone trains it",
            ),
            _ => RouterGradient::Yes,
        }
    }
    fn row_memory(&self) -> RowMemory {
        let k = self.choice.top_k as f64;
        let per_layer = 2.0 * k * self.lora.r as f64 + 6.0 * self.experts.num_experts as f64;
        // Its router reads the block's input, and so does its branch, or a copy with dropout.
        let hidden = if self.lora.lora_dropout > 0.0 { 2.0 } else { 1.0 };
        RowMemory { per_layer, hidden, ..RowMemory::PLAIN }
    }
    fn block(&self, at: &StateBuild<'_>) -> Result<Option<Arc<dyn BlockAdapter>>> {
        if at.site.part != SitePart::Mlp {
            return Ok(None);
        }
        let d = at.site.hidden_size;
        at.site.fits("r", self.lora.r)?;
        let e = self.experts.num_experts;
        let name = |what: &str, rows: usize| vec![(part(&at.site.path, what), rows)];
        let bound = 1.0 / (d as f32).sqrt();
        let rows = e * self.lora.r;
        let noise = self.noisy.then(|| at.uniform(name("router_noise", e), d, bound, true)).transpose()?;
        let router = NoisyRouter {
            site: at.site.name.clone(),
            options: self.clone(),
            routing: self.rule().routing()?,
            router: at.uniform(name("router", e), d, bound, true)?,
            router_noise: noise,
        };
        Ok(Some(Arc::new(Beside {
            site: at.site.name.clone(),
            router,
            a: at.normal(name("lora_a", rows), d, 1.0 / self.lora.r as f32, true)?,
            b: Param::drawn(at.device, name("lora_b", rows), d, true, |_, n| vec![0.0; n])?,
            scale: self.scale(),
            dropout: self.lora.lora_dropout,
        })))
    }
}
