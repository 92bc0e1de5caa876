//! `lora-mixer`: LoRA experts that all act in training, and the best few at inference, under a router that learns to be sure
//! and to use them all (arXiv:2507.00029).
//!
//! Training: `y = W x + s sum_e p_e B_e A_e x`, `p = softmax(W_r x)`; inference: the `top_k` largest logits, gates the softmax over
//! them. To the loss come `rsl_alpha sum_e P_e f_e + rsl_lambda mean H(p)`, and for the experts of `preserve` the squared
//! distance from where they started.

use crate::mixture::losses::{Counted, rsl};
use crate::mixture::routers::dense_memory;
use crate::mixture::{
    Ask, Axes, Experts, Gate, LinearBuild, List, Lora, MethodOptions, MethodSpec, RoutedLinears, Router,
    RouterGradient, Routes, Routing, RowMemory, Rule, Score, Select, Selection, TakesExperts, TopK, enough,
    route_rows,
};
use crate::nn::{LinearAdapter, Param};
use crate::ops::select::SelectRule;
use crate::{Error, Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "lora-mixer",
    paper: "LoRA-Mixer, arXiv:2507.00029",
    when: "experts that learn together, and cheap inference",
    equation: "training: y = W x + s sum_e p_e B_e A_e x; inference: the top k, gates the softmax over them\nloss: rsl_alpha sum_e P_e f_e + rsl_lambda mean H(p), and preserve_coef |theta - theta_0|^2",
    differs: "Only experts that are trained jointly; the sign of the entropy is the one that the paper's text wants.",
    axes: Axes {
        input: "the linear's input",
        entry: "LoRA of rank r",
        balance: "load and entropy (RSL)",
        trained: "all",
    },
    routes: Routes::Token,
    trainable: "E r (d_in + d_out) + E d_in",
    options: || Box::new(LoraMixer::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `lora-mixer`.
    pub struct LoraMixer use [lora: Lora { r: 8 }, experts: Experts, choice: TopK { top_k: 3 }] {
        /// Weight of the load in the routing loss.
        rsl_alpha: f32 = 0.1, in 0.0.., "arXiv:2507.00029";
        /// Weight of the entropy, which training lowers; below 0 it is raised, as the paper prints it.
        rsl_lambda: f32 = 0.01, "arXiv:2507.00029";
        /// Coefficient of the routing loss.
        rsl_coef: f32 = 1.0, in 0.0..;
        /// Numbers of the experts that are held near where they started.
        preserve: List<usize> = List(Vec::new()), "arXiv:2507.00029";
        /// Coefficient of their squared distance from there.
        preserve_coef: f32 = 0.1, in 0.0.., "arXiv:2507.00029";
    }
}

/// Experts as they were, and which of their rows are held.
struct Start {
    a: Param,
    b: Vec<Param>,
    /// 1 at the rows of held experts, `[E * r, 1]`.
    held: Vec<f32>,
}

/// All experts in training, the best at inference.
struct Mixer {
    linears: usize,
    options: LoraMixer,
    routing: Routing,
    /// `[L * E, d_in]`
    router: Param,
    a: Param,
    b: Vec<Param>,
    start: Option<Start>,
}

impl Mixer {
    /// `sum over the held experts of |a - a_0|^2 + |b - b_0|^2`.
    fn distance(&self, start: &Start) -> Result<Tensor> {
        let of = |now: &Param, then: &Param, copies: usize| -> Result<Tensor> {
            let apart = now.tensor().sub(&then.value())?;
            let held = start.held.repeat(copies);
            let held = Tensor::from_f32(apart.device(), &[held.len(), 1], &held)?;
            apart.mul(&apart)?.mul(&held)?.sum()
        };
        let a = of(&self.a, &start.a, self.linears)?;
        self.b.iter().zip(&start.b).try_fold(a, |sum, (now, then)| sum.add(&of(now, then, 1)?))
    }

    fn losses(&self, logits: &Tensor, ask: &Ask<'_>) -> Result<()> {
        let o = &self.options;
        let [m, l, e] = *logits.dims() else { return Ok(()) };
        if o.rsl_coef > 0.0 {
            let tokens = Counted::of(ask.pass, m);
            let best = logits.detach().select(&SelectRule::TopK(o.choice.top_k))?.reshape(&[m, l * e])?;
            let share = 1.0 / (o.choice.top_k * tokens.count().max(1)) as f32;
            let load = tokens.sum(&best)?.scale(share)?;
            ask.pass.add_aux(rsl(logits, &load, &tokens, o.rsl_alpha, o.rsl_lambda)?.scale(o.rsl_coef)?);
        }
        match &self.start {
            Some(start) if o.preserve_coef > 0.0 => {
                ask.pass.add_aux(self.distance(start)?.scale(o.preserve_coef)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Router for Mixer {
    const UNIT: Routes = Routes::Token;

    fn pool(&self) -> (usize, usize) {
        (self.options.experts.num_experts, self.options.lora.r)
    }

    fn chooses(&self) -> bool {
        false
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let (e, rank) = self.pool();
        let m = x.shape().rows();
        let rows = x.reshape(&[m, x.shape().last()])?;
        if !ask.pass.train {
            return route_rows(&rows, &self.router.tensor(), self.linears, None, None, &self.routing, rank);
        }
        let logits = rows.matmul_nt(&self.router.tensor())?.reshape(&[m, self.linears, e])?;
        self.losses(&logits, ask)?;
        Selection::dense(logits.softmax()?, None, &ask.pass.units, rank)
    }

    fn params(&self) -> Vec<Param> {
        let start = self.start.iter().flat_map(|start| std::iter::once(&start.a).chain(&start.b));
        std::iter::once(&self.router).chain(start).cloned().collect()
    }
}

impl MethodOptions for LoraMixer {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn check(&self) -> Result<()> {
        let e = self.experts.num_experts;
        enough(("top_k", self.choice.top_k), ("num_experts", e))?;
        match self.preserve.0.iter().find(|&&expert| expert >= e) {
            Some(expert) => Err(Error::config("preserve", expert, format!("below num_experts ({e})"))),
            None => Ok(()),
        }
    }
    fn rule(&self) -> Rule {
        Rule { score: Score::Softmax, select: Select::All, gate: Gate::Score }
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::Yes
    }
    fn takes_experts(&self) -> TakesExperts {
        TakesExperts::Optional
    }
    fn row_memory(&self) -> RowMemory {
        dense_memory(&self.experts, &self.lora)
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let e = self.experts.num_experts;
        let r = self.lora.r;
        at.site.fits("r", r)?;
        let a = at.inputs("lora_a", e * r)?;
        let b = at.outputs("lora_b", e * r)?;
        let start = if self.preserve.0.is_empty() {
            None
        } else {
            let kept = |of: &Param| {
                let parts = of.parts().iter().map(|(name, rows)| (format!("{name}_start"), *rows)).collect();
                Param::stacked(parts, of.value(), false)
            };
            let held =
                (0..e * r).map(|row| f32::from(u8::from(self.preserve.0.contains(&(row / r))))).collect();
            Some(Start { a: kept(&a)?, b: b.iter().map(kept).collect::<Result<_>>()?, held })
        };
        let router = Mixer {
            linears: at.site.linears.len(),
            options: self.clone(),
            routing: Rule::top_k(self.choice.top_k, Gate::Softmax).routing()?,
            router: at.inputs("router", e)?,
            a: a.clone(),
            b: b.clone(),
            start,
        };
        Ok(RoutedLinears::adapter(self, at, router, a, b))
    }
}
