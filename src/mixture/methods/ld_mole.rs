//! `ld-mole`: a learned number of experts for each token, by a projection onto the simplex whose sparsity is predicted
//! (LD-MoLE).
//!
//! `lambda = logsigmoid(MLP(x)) + 0.99`; with the logits z in falling order the support is every j with `1 - lambda + j
//! z_j > z_1 + .. + z_j`, `tau = (sum of z on the support - 1 + lambda) / its size`, and the gates are `max(0, z - tau) /
//! max(1 - lambda, 0.01)`: they sum to 1 (Sparsegen, arXiv:1810.11975).

use super::lora;
use crate::mixture::losses::{mean_of_rows, switch_loss, z_loss};
use crate::mixture::routers::{DenseExperts, GateRule, Gated, Scored, dense_memory};
use crate::mixture::{
    AuxLoss, Axes, Experts, Gate, LinearBuild, Lora, MethodOptions, MethodSpec, RoutedLinears,
    RouterGradient, Routes, RowMemory, Rule, Score, Select,
};
use crate::nn::{LinearAdapter, Param};
use crate::ops::select::SelectRule;
use crate::{Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "ld-mole",
    paper: "LD-MoLE, eshentw/LD-MoLE",
    when: "tokens that need experts in different numbers, learned without a threshold",
    equation: "y = W x + s sum_e g_e B_e A_e x, g = max(0, z - tau) / max(1 - lambda, 0.01), lambda = logsigmoid(MLP(x)) + 0.99",
    differs: "The MLP is one for each group of linears that read the same input, not one for all layers; all losses leave padding out.",
    axes: Axes {
        input: "the linear's input, and an MLP of it",
        entry: "LoRA of rank r",
        balance: "Switch loss, z-loss, sparsity",
        trained: "all",
    },
    routes: Routes::Token,
    trainable: "E r (d_in + d_out) + E d_in, and 128 (d_in + 2) + 1 for each group of linears",
    options: || Box::new(LdMole::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `ld-mole`.
    pub struct LdMole use [
        lora: Lora { r: 8, lora_dropout: 0.1 },
        experts: Experts,
        balance: AuxLoss { aux_loss_coef: 0.0 },
    ] {
        /// Width of the MLP that predicts the sparsity.
        sparsity_width: usize = 128, in 1.0.., "eshentw/LD-MoLE";
        /// Where the MLP's last bias starts: lower means denser.
        sparsity_bias: f32 = -2.5, "eshentw/LD-MoLE";
        /// Coefficient of the mean squared log-sum of the logits.
        z_loss_coef: f32 = 0.0, in 0.0.., "eshentw/LD-MoLE";
        /// Coefficient of `mean (1 - lambda)`, which makes gates sparser.
        sparse_coef: f32 = 0.0, in 0.0.., "eshentw/LD-MoLE";
        /// Coefficient of the hinge that pushes towards at most two experts.
        hinge_coef: f32 = 0.0, in 0.0.., "eshentw/LD-MoLE";
    }
}

/// Least divisor of the gates.
const LEAST: f32 = 0.01;
/// Added to the log of a sigmoid, so that lambda stays below it.
const MOST: f32 = 0.99;

/// The rule with its predictor: linear, ReLU, linear.
struct Sparsegen {
    options: LdMole,
    first: Param,
    first_bias: Param,
    second: Param,
    second_bias: Param,
}

impl Sparsegen {
    fn new(options: &LdMole, at: &LinearBuild<'_>) -> Result<Self> {
        let w = options.sparsity_width;
        let name = |what: &str, rows: usize| vec![(at.site.shared_part(what), rows)];
        let bound = |d: usize| 1.0 / (d as f32).sqrt();
        let bias = Tensor::full(at.device, &[1, 1], options.sparsity_bias)?;
        Ok(Sparsegen {
            options: options.clone(),
            first: at.uniform(name("sparsity_1", w), at.site.d_in, bound(at.site.d_in), true)?,
            first_bias: at.uniform(name("sparsity_1_bias", 1), w, bound(at.site.d_in), true)?,
            second: at.uniform(name("sparsity_2", 1), w, bound(w), true)?,
            second_bias: Param::stacked(name("sparsity_2_bias", 1), bias, true)?,
        })
    }

    /// `1 - lambda`, `[M, 1]`.
    fn density(&self, x: &Tensor) -> Result<Tensor> {
        let w = self.options.sparsity_width;
        let hidden =
            x.matmul_nt(&self.first.tensor())?.add(&self.first_bias.tensor().reshape(&[w])?)?.relu()?;
        let out = hidden.matmul_nt(&self.second.tensor())?.add(&self.second_bias.tensor().reshape(&[1])?)?;
        // -logsigmoid(v) = softplus(-v)
        let base = Tensor::full(x.device(), &[x.shape().rows(), 1], 1.0 - MOST)?;
        base.add(&out.scale(-1.0)?.softplus()?)
    }
}

impl GateRule for Sparsegen {
    fn chooses(&self) -> bool {
        true
    }
    fn gate(&self, scored: &Scored<'_>) -> Result<Gated> {
        let [m, l, _] = *scored.logits.dims() else { return dense(scored) };
        let device = scored.logits.device();
        // The largest logit comes off first: near lambda = 0.99 two digits depend on it.
        let z = scored.logits.clone();
        let top =
            z.detach().mul(&z.detach().select(&SelectRule::TopK(1))?)?.sum_last()?.reshape(&[m, l, 1])?;
        let z = z.add_scaled(&top, -1.0)?;
        let density = self.density(scored.x)?;
        // One prediction for all linears of the group.
        let per_linear = density.repeat_rows(l)?.reshape(&[m, l, 1])?;
        let mask = match scored.ask.forced {
            Some(mask) => mask.clone(),
            None => support(&z.detach(), &per_linear.detach())?,
        };
        let size = mask.sum_last()?.reshape(&[m, l, 1])?.power(-1.0, 0.0)?;
        let sum = z.mul(&mask)?.sum_last()?.reshape(&[m, l, 1])?;
        let tau = sum.sub(&per_linear)?.mul(&size)?;
        // max(d, LEAST) = LEAST + relu(d - LEAST)
        let least = Tensor::full(device, &[m, l, 1], LEAST)?;
        let divisor = per_linear.sub(&least)?.relu()?.add(&least)?;
        let above = z.add_scaled(&tau, -1.0)?.mul(&mask)?;
        let single = self.single(&mask, &above, &divisor)?;
        self.losses(scored, &single, &mask, &density)?;
        Ok(Gated { gates: single, mask: Some(mask) })
    }

    fn params(&self) -> Vec<Param> {
        [&self.first, &self.first_bias, &self.second, &self.second_bias].map(Param::clone).into()
    }
}

/// 1 on the support: with the logits in falling order, every j with `d + j z_j > z_1 + .. + z_j`. That is `sum over i
/// of max(0, z_i - z_j) < d`, without an order.
fn support(z: &Tensor, density: &Tensor) -> Result<Tensor> {
    let dims = z.dims().to_vec();
    let [m, l, e] = *z.dims() else { return z.select(&SelectRule::TopK(usize::MAX)) };
    let pairs = z.reshape(&[m * l, e])?.repeat_rows(e)?;
    let beyond = pairs.add_scaled(&z.reshape(&[m * l * e, 1])?, -1.0)?.relu()?.sum_last()?.reshape(&dims)?;
    beyond.scale(-1.0)?.add(density)?.select(&SelectRule::Above(0.0))
}

impl Sparsegen {
    /// The gates; where one expert acts, exactly its 1: on paper it has no derivative, and rounding would give it one.
    fn single(&self, mask: &Tensor, above: &Tensor, divisor: &Tensor) -> Result<Tensor> {
        let [m, l, _] = *mask.dims() else { return above.scale(1.0) };
        let several = mask.sum_last()?.reshape(&[m, l, 1])?.select(&SelectRule::Above(1.5))?;
        let one = Tensor::full(mask.device(), several.dims(), 1.0)?.sub(&several)?;
        above.mul(&divisor.power(-1.0, 0.0)?.mul(&several)?)?.add(&mask.mul(&one)?)
    }

    fn losses(&self, scored: &Scored<'_>, gates: &Tensor, mask: &Tensor, density: &Tensor) -> Result<()> {
        let o = &self.options;
        let tokens = scored.counted();
        let [_, l, e] = *gates.dims() else { return Ok(()) };
        scored.add_loss(o.balance.aux_loss_coef, || {
            // f: the share of an expert in all pairs of a token and an expert that acts for it.
            let load = tokens.sum(&scored.flat(mask)?)?.reshape(&[l, e])?;
            let all = load.sum_last()?.reshape(&[l, 1])?.power(-1.0, 1e-10)?;
            switch_loss(&tokens.mean(&scored.flat(gates)?)?, &load.mul(&all)?.reshape(&[l * e])?, e, 1)
        })?;
        scored.add_loss(o.z_loss_coef, || z_loss(&scored.logits, &tokens))?;
        scored.add_loss(o.sparse_coef, || mean_of_rows(density, &tokens))?;
        if e > 2 {
            scored.add_loss(o.hinge_coef, || {
                let z = scored.logits.detach();
                let best = |k: usize| z.mul(&z.select(&SelectRule::TopK(k))?)?.sum_last();
                let two = best(2)?;
                // Exactly two act where 1 - lambda is at most z_1 + z_2 - 2 z_3.
                let gap = two.add_scaled(&best(3)?.sub(&two)?, -2.0)?;
                let [m, l, _] = *z.dims() else { return z.sum() };
                let beyond = density.repeat_rows(l)?.reshape(&[m, l])?.sub(&gap)?.relu()?;
                mean_of_rows(&beyond, &tokens)
            })?;
        }
        Ok(())
    }
}

fn dense(scored: &Scored<'_>) -> Result<Gated> {
    Ok(Gated { gates: scored.logits.softmax()?, mask: None })
}

impl MethodOptions for LdMole {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn rule(&self) -> Rule {
        Rule { score: Score::Logit, select: Select::Support, gate: Gate::Sparsegen }
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::Yes
    }
    fn row_memory(&self) -> RowMemory {
        // Four groups of linears read the same input; the predictor of each keeps its hidden values ahead of the ReLU and
        // behind it.
        let per_layer = 4.0 * 2.0 * self.sparsity_width as f64;
        RowMemory { per_layer, ..dense_memory(&self.experts, &self.lora) }
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        if self.experts.num_experts == 1 {
            // One expert has nothing to choose.
            return lora::adapter(self, at);
        }
        let rule = Sparsegen::new(self, at)?;
        let router = DenseExperts::new(at, self.experts.num_experts, self.lora.r, rule)?;
        RoutedLinears::of_experts(self, at, router)
    }
}
