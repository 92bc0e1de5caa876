//! `remix`: experts with one gate for all, drawn in training, under routers that learn by policy gradient (ReMix).
//!
//! `q = softmax(W_r x)`; k experts, in training drawn from q one after the other without replacement, else the k likeliest;
//! `y = W x + omega sum over them of B_e A_e x`. Every step draws `draws` times; factors learn by their gradients, routers by
//! `1/(draws - 1) sum_m (L_m - mean L) grad log Q_m`, where `L_m` is the loss of a sample and `Q_m` how likely its draws were.

use crate::mixture::routers::one_hot;
use crate::mixture::{
    Ask, Axes, Experts, Gate, LinearBuild, Lora, MethodOptions, MethodSpec, RoutedLinears, Router,
    RouterGradient, Routes, Routing, RowMemory, Rule, Selection, TopK, Units, enough, route,
};
use crate::nn::{LinearAdapter, Param, Pass};
use crate::{Result, Tensor, options, words};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "remix",
    paper: "ReMix, 2026",
    when: "gates that must not collapse onto one expert, where several passes a step are affordable",
    equation: "y = W x + omega sum over k experts of B_e A_e x, drawn from q = softmax(W_r x) in training, the likeliest else\nrouters: 1/(M - 1) sum_m (L_m - mean L) grad log Q_m over M draws",
    differs: "The loss that judges a draw is that of its sample, not of the whole batch: less noise, the same mean.",
    axes: Axes {
        input: "the linear's input",
        entry: "LoRA of rank r",
        balance: "none: all gates are equal",
        trained: "all, routers by policy gradient",
    },
    routes: Routes::Token,
    trainable: "E r (d_in + d_out) + E d_in",
    options: || Box::new(Remix::default()),
    ..MethodSpec::PLAIN
};

words! {
    /// The gate of every expert that acts.
    pub enum Omega {
        /// `2 / (k r)`
        Lora = "lora",
        /// `2 / sqrt(k r)`
        RsLora = "rslora",
    }
}

options! {
    /// Options of `remix`.
    pub struct Remix use [lora: Lora { r: 8 }, experts: Experts, choice: TopK] {
        /// The gate of every expert that acts: 2 / (top_k r), or 2 / sqrt(top_k r). Another `lora_alpha` than 2 r
        /// scales it.
        form: Omega = Omega::Lora, "ReMix";
        /// Draws of each step: as many passes, from which routers learn.
        draws: usize = 4, in 2.0..=64.0, "ReMix";
    }
}

/// Draws experts for each token.
struct Drawn {
    /// The names of the linears.
    names: Vec<String>,
    experts: usize,
    rank: usize,
    routing: Routing,
    /// `[L * E, d_in]`
    router: Param,
}

/// Least probability that is left when others were drawn: below it the logarithm would lose all digits.
const LEAST: f32 = 1e-30;

impl Drawn {
    /// How likely the drawn experts were, as a logarithm for each sample `[B]`: `sum over its tokens and j of log q_j - log(1
    /// - the q of those drawn before j)`.
    fn log_probability(&self, logits: &Tensor, drawn: &Tensor, pass: &Pass) -> Result<Tensor> {
        let [l, e] = [self.names.len(), self.experts];
        let [_, _, m, k] = *drawn.dims() else { return drawn.sum() };
        let device = logits.device();
        // Choices are linear by linear.
        let order: Vec<u32> = (0..l * m).map(|i| (i % m * l + i / m) as u32).collect();
        let z = logits.reshape(&[m * l, e])?.gather_rows(&Tensor::from_u32(device, &[l * m], &order)?)?;
        let hits = one_hot(drawn, l * m * k, e)?;
        // What is still there at each draw: all but the hits before.
        let before: Vec<f32> = (0..k * e * k * e)
            .map(|i| {
                let from = i / (k * e);
                let to = i % (k * e);
                f32::from(u8::from(from % e == to % e && from / e < to / e))
            })
            .collect();
        let before = Tensor::from_f32(device, &[k * e, k * e], &before)?;
        let taken = hits.reshape(&[l * m, k * e])?.matmul(&before)?.reshape(&[l * m * k, e])?;
        let left = Tensor::full(device, taken.dims(), 1.0)?.sub(&taken)?;
        let log_q = z.log_softmax()?.repeat_rows(k)?.mul(&hits)?.sum_last()?;
        let rest = z.softmax()?.repeat_rows(k)?.mul(&left)?.sum_last()?.log_shifted(LEAST)?;
        let of_token = log_q.sub(&rest)?.reshape(&[l * m, k])?.sum_last()?.reshape(&[l, m])?;
        let of_token = of_token.sum_rows()?;
        let of_token = match &pass.valid {
            Some((weights, _)) => of_token.mul(&weights.reshape(&[m])?)?,
            None => of_token,
        };
        let samples = pass.samples(m);
        of_token.reshape(&[samples, m / samples])?.sum_last()
    }
}

impl Router for Drawn {
    const UNIT: Routes = Routes::Token;

    fn pool(&self) -> (usize, usize) {
        (self.experts, self.rank)
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let m = x.shape().rows();
        let rows = x.reshape(&[m, x.shape().last()])?.detach();
        let logits =
            rows.matmul_nt(&self.router.tensor())?.reshape(&[m, self.names.len(), 1, self.experts])?;
        // The k largest of logits with Gumbel noise are k draws without replacement, in order.
        let scores = if ask.pass.train {
            logits.detach().add(&ask.pass.gumbel(x.device(), &self.names, m, self.experts)?)?
        } else {
            logits.detach()
        };
        let choice = route(&scores, None, None, ask.forced, &self.routing, &Units::tokens(m), self.rank)?;
        if ask.pass.train {
            ask.pass.add_log_probability(self.log_probability(&logits, choice.idx(), ask.pass)?);
        }
        Ok(choice)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.router.clone()]
    }
}

impl MethodOptions for Remix {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    /// omega, where `lora_alpha` is its default.
    fn scale(&self) -> f32 {
        let active = (self.choice.top_k * self.lora.r) as f32;
        let omega = match self.form {
            Omega::Lora => 2.0 / active,
            Omega::RsLora => 2.0 / active.sqrt(),
        };
        self.alpha() / self.default_alpha() * omega
    }
    fn check(&self) -> Result<()> {
        enough(("top_k", self.choice.top_k), ("num_experts", self.experts.num_experts))
    }
    fn draws(&self) -> usize {
        self.draws
    }
    fn rule(&self) -> Rule {
        Rule::top_k(self.choice.top_k, Gate::None)
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::Estimated(
            "a policy gradient over the draws of a step; evaluation takes the likeliest experts",
        )
    }
    fn row_memory(&self) -> RowMemory {
        let e = self.experts.num_experts as f64;
        let k = self.choice.top_k as f64;
        // How likely draws were is made of tables with a value for each draw and expert.
        RowMemory { per_linear: k * self.lora.r as f64 + 12.0 * e * k, ..RowMemory::ROUTED }
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let [e, r] = [self.experts.num_experts, self.lora.r];
        at.site.fits("r", r)?;
        let router = Drawn {
            names: at.site.parts("draws", 0).into_iter().map(|(name, _)| name).collect(),
            experts: e,
            rank: r,
            routing: self.rule().routing()?,
            router: at.inputs("router", e)?,
        };
        RoutedLinears::of_experts(self, at, router)
    }
}
