//! `llava-mole`: one expert for each token, the same at gate, up and down of an MLP block (arXiv:2401.16160). Other linears
//! get a plain LoRA.
//!
//! `p = softmax(W_r x + c)`; the expert of the largest p adds its update to each of the three products, without a gate. With
//! `dense` all experts do, each times its p.

use super::lora;
use crate::mixture::losses::Counted;
use crate::mixture::routers::one_hot;
use crate::mixture::site::part;
use crate::mixture::{
    Ask, AuxLoss, Axes, Experts, Gate, Hook, LinearBuild, Lora, MethodOptions, MethodSpec, MlpBuild, Router,
    RouterGradient, Routes, Routing, RowMemory, Rule, Score, Select, Selection, Units, decide,
    mixture_linears, route,
};
use crate::nn::{JointLoss, LinearAdapter, Mlp, MlpAdapter, Param, Pass};
use crate::{Linear, Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "llava-mole",
    paper: "LLaVA-MoLE, arXiv:2401.16160",
    when: "samples that mix kinds of data which disturb each other in one LoRA",
    equation: "y = W_d h + s D_d h, h = act(W_g x + s D_g x) * (W_u x + s D_u x), D the expert of the largest p = softmax(W_r x + c)\ndense: D = sum_e p_e D_e",
    axes: Axes {
        input: "the block's input",
        entry: "LoRA at each linear of a block",
        balance: "p times hits, by sample",
        trained: "all",
    },
    hook: Hook::Mlp,
    routes: Routes::Token,
    trainable: "3 E r (hidden + ffn) + E hidden + E; r (d_in + d_out) elsewhere",
    options: || Box::new(LlavaMole::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `llava-mole`.
    pub struct LlavaMole use [
        lora: Lora { r: 32, lora_dropout: 0.05 },
        experts: Experts { num_experts: 3 },
        balance: AuxLoss { aux_loss_coef: 0.01 },
    ] {
        /// All experts act, each times its probability, instead of the best one.
        dense: bool = false, "forwchen/LLaVA-MoLE";
    }
}

/// Scores experts once for a block.
struct BlockRouter {
    experts: usize,
    rank: usize,
    dense: bool,
    routing: Routing,
    /// `[E, hidden]`
    router: Param,
    /// `[1, E]`
    bias: Param,
    aux_loss_coef: f32,
}

impl Router for BlockRouter {
    const UNIT: Routes = Routes::Token;

    fn pool(&self) -> (usize, usize) {
        (self.experts, self.rank)
    }

    fn choose(&self, rows: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let e = self.experts;
        let m = rows.shape().rows();
        let logits = rows.matmul_nt(&self.router.tensor())?.add(&self.bias.tensor().reshape(&[e])?)?;
        let z = logits.reshape(&[m, 1, 1, e])?;
        let best = route(&z, None, None, ask.forced, &self.routing, &Units::tokens(m), self.rank)?;
        if ask.pass.train && self.aux_loss_coef > 0.0 {
            let joint = JointLoss { name: BALANCE, coefficient: self.aux_loss_coef, finish: balance };
            ask.pass.add_share(joint, self.share(&logits, best.idx(), ask.pass)?);
        }
        if self.dense {
            return Selection::dense(
                logits.softmax()?.reshape(&[m, 1, e])?,
                None,
                &ask.pass.units,
                self.rank,
            );
        }
        Ok(best)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.router.clone(), self.bias.clone()]
    }
}

/// The balance loss of all blocks together.
const BALANCE: &str = "llava-mole balance";

impl BlockRouter {
    /// A block's share: sums of p, of hits and of tokens for each sample. No gradient goes through the hits.
    fn share(&self, logits: &Tensor, best: &Tensor, pass: &Pass) -> Result<Vec<Tensor>> {
        let [m, e] = [logits.shape().rows(), self.experts];
        let tokens = Counted::of(pass, m);
        let weights = match tokens.weights() {
            Some(weights) => weights.clone(),
            None => Tensor::full(logits.device(), &[m, 1], 1.0)?,
        };
        let of_sample = m / pass.samples(m);
        let sums = |x: Tensor| x.mul(&weights)?.sum_groups(of_sample);
        Ok(vec![sums(logits.softmax()?)?, sums(one_hot(best, m, e)?)?, weights.sum_groups(of_sample)?])
    }
}

/// For each sample `sum_e (mean p_e) (mean [e is the best])` over its tokens in all blocks, then the mean over samples.
fn balance(shares: &[Vec<Tensor>]) -> Result<Tensor> {
    let mut sums = shares[0].clone();
    for share in &shares[1..] {
        for (sum, value) in sums.iter_mut().zip(share) {
            *sum = sum.add(value)?;
        }
    }
    // A sample has at least one token that counts.
    let means = sums[0].mul(&sums[1])?.mul(&sums[2].power(-2.0, 0.0)?)?;
    means.sum()?.scale(1.0 / sums[2].len() as f32)
}

/// Experts at the three linears of a block, under one router.
struct MoleMlp {
    site: String,
    router: BlockRouter,
    /// Of gate, up and down.
    a: [Param; 3],
    b: [Param; 3],
    scale: f32,
    dropout: f32,
}

impl MoleMlp {
    fn project(
        &self,
        x: &Tensor,
        which: usize,
        linear: &Linear,
        choice: &Selection,
        pass: &Pass,
    ) -> Result<Tensor> {
        let input = if which < 2 { "gate_up" } else { "down" };
        let dropout = pass.dropout(&part(&self.site, input), self.dropout);
        let linears = std::slice::from_ref(linear);
        let b = [self.b[which].tensor()];
        Ok(mixture_linears(x, linears, &self.a[which].tensor(), &b, choice, self.scale, dropout)?
            .swap_remove(0))
    }
}

impl MlpAdapter for MoleMlp {
    fn forward(&self, x: &Tensor, mlp: &Mlp, pass: &Pass) -> Result<Tensor> {
        let rows = x.reshape(&[x.shape().rows(), x.shape().last()])?;
        let choice = decide(&self.router, &self.site, &rows, pass)?;
        let gate = self.project(&rows, 0, &mlp.gate_up.linears[0], &choice, pass)?;
        let up = self.project(&rows, 1, &mlp.gate_up.linears[1], &choice, pass)?;
        let h = mlp.combine(&gate, &up)?;
        self.project(&h, 2, &mlp.down.linears[0], &choice, pass)?.reshape(x.dims())
    }

    fn params(&self) -> Vec<Param> {
        self.router.params().into_iter().chain(self.a.clone()).chain(self.b.clone()).collect()
    }
}

impl MethodOptions for LlavaMole {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn rule(&self) -> Rule {
        if self.dense {
            return Rule { score: Score::Softmax, select: Select::All, gate: Gate::Score };
        }
        Rule::top_k(1, Gate::None)
    }
    fn router_gradient(&self) -> RouterGradient {
        if self.dense {
            return RouterGradient::Yes;
        }
        RouterGradient::No("the best expert acts without a gate; the balance loss alone trains it")
    }
    fn row_memory(&self) -> RowMemory {
        let active = if self.dense { self.experts.num_experts } else { 1 };
        RowMemory { per_linear: (active * self.lora.r) as f64, hidden: 1.0, ..RowMemory::PLAIN }
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        lora::adapter(self, at)
    }
    fn mlp(&self, at: &MlpBuild<'_>) -> Result<Option<Arc<dyn MlpAdapter>>> {
        let rank = self.lora.r;
        at.site.fits("r", rank)?;
        let e = self.experts.num_experts;
        let d = at.site.hidden_size;
        let f = at.site.intermediate_size;
        let name = |what: &str, rows: usize| vec![(part(&at.site.path, what), rows)];
        let bound = |d: usize| 1.0 / (d as f32).sqrt();
        let a = |what: &str, d_in: usize| {
            at.uniform(name(&format!("{what}.lora_a"), e * rank), d_in, bound(d_in), true)
        };
        let b = |what: &str, d_out: usize| {
            Param::drawn(at.device, name(&format!("{what}.lora_b"), e * rank), d_out, true, |_, n| {
                vec![0.0; n]
            })
        };
        let router = BlockRouter {
            experts: e,
            rank,
            dense: self.dense,
            routing: Rule::top_k(1, Gate::None).routing()?,
            router: at.uniform(name("router", e), d, bound(d), true)?,
            bias: at.uniform(name("router_bias", 1), e, bound(d), true)?,
            aux_loss_coef: self.balance.aux_loss_coef,
        };
        Ok(Some(Arc::new(MoleMlp {
            site: at.site.name.clone(),
            router,
            a: [a("gate_proj", d)?, a("up_proj", d)?, a("down_proj", f)?],
            b: [b("gate_proj", f)?, b("up_proj", f)?, b("down_proj", d)?],
            scale: self.scale(),
            dropout: self.lora.lora_dropout,
        })))
    }
}
