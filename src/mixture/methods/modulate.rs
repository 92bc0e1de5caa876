//! `modulate`: experts that scale and shift the outputs of a linear, chosen for each token (after MoFME, arXiv:2312.16610).
//!
//! `y' = y + sum over the top k of g_e (p_e * y + q_e)` for `y = W x + bias`, gates the softmax over the chosen of `z = W_r x`.
//! With the shift an expert is a FiLM (arXiv:1709.07871), without it an (IA)^3 (arXiv:2205.05638). Both start at zero.

use crate::mixture::routers::Gated;
use crate::mixture::{
    Ask, Axes, Experts, Gate, LinearBuild, LinearSite, Lora, MethodOptions, MethodSpec, Router,
    RouterGradient, Routes, RowMemory, Rule, Selection, SiteMemory, TopK, Tree, decide, enough,
};
use crate::nn::{LinearAdapter, Param, Pass};
use crate::{Error, Linear, Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "modulate",
    paper: "MoFME, arXiv:2312.16610",
    when: "inputs of many kinds that need a little each: an expert has two values for an output",
    equation: "y = W x + bias; y' = y + sum over the top k of g_e (p_e * y + q_e), g = softmax over the chosen of W_r x",
    differs: "MoFME trains a block whose experts are (P_e y + p_e) * y + (Q_e y + q_e); here y is any frozen linear and both are vectors. \
              Its release passes tokens through a router without randomness; router_dropout gives it some. With one expert \
              and its gate of 1 the update is one matrix and one bias, but it is not merged.",
    axes: Axes {
        input: "the linear's input",
        entry: "scale and shift of each output",
        balance: "none",
        trained: "all",
    },
    routes: Routes::Token,
    trainable: "2 E d_out + E d_in (E d_out + E d_in without the shift)",
    options: || Box::new(Modulate::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `modulate`.
    pub struct Modulate use [experts: Experts, choice: TopK] {
        /// Whether experts also shift outputs, as FiLM does; (IA)^3 only scales them.
        shift: bool = true, "arXiv:1709.07871";
        /// Dropout on what the router sees in training: gates that vary under it mark tokens that it does not know.
        router_dropout: f32 = 0.0, in 0.0..1.0, "arXiv:2312.16610";
    }
}

/// There is no low-rank update: a factor of 1 and no dropout on its input.
static NO_LORA: Lora = Lora { r: 1, lora_alpha: Some(1.0), lora_dropout: 0.0 };

/// Chooses experts for each token.
struct TopGates {
    site: String,
    linears: usize,
    options: Modulate,
    /// `[L * E, d_in]`
    router: Param,
}

impl Router for TopGates {
    const UNIT: Routes = Routes::Token;

    fn pool(&self) -> (usize, usize) {
        (self.options.experts.num_experts, 1)
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let m = x.shape().rows();
        let rows = x.reshape(&[m, x.shape().last()])?;
        let seen = match ask.pass.dropout(&format!("{}.router", self.site), self.options.router_dropout) {
            Some(dropout) => rows.dropout(dropout.p, dropout.stream)?,
            None => rows,
        };
        let logits = seen.matmul_nt(&self.router.tensor())?;
        let logits = logits.reshape(&[m, self.linears, self.options.experts.num_experts])?;
        let Gated { gates, mask } =
            Gated::top_k(&logits, self.options.choice.top_k, ask.forced)?.normalised()?;
        Selection::dense(gates, mask, &ask.pass.units, 1)
    }
}

/// Linears whose outputs are modulated.
struct Modulated {
    router: TopGates,
    /// One `[E, d_out]` per linear.
    scales: Vec<Param>,
    /// The same, or none.
    shifts: Vec<Param>,
}

impl LinearAdapter for Modulated {
    fn forward(&self, x: &Tensor, linears: &[Linear], pass: &Pass) -> Result<Vec<Tensor>> {
        let choice = decide(&self.router, &self.router.site, x, pass)?;
        let none = || Error::shape("modulate", "a dense selection", "none");
        let gates = choice.row_gates().ok_or_else(none)?;
        let m = x.shape().rows();
        let rows = x.reshape(&[m, x.shape().last()])?;
        let output = |(l, linear): (usize, &Linear)| {
            let y = rows.linear(&linear.weight, linear.bias.as_ref())?;
            let gates = Gated::of_linear(gates, l)?;
            let mut moved = y.add(&y.mul(&gates.matmul(&self.scales[l].tensor())?)?)?;
            if let Some(shift) = self.shifts.get(l) {
                moved = moved.add(&gates.matmul(&shift.tensor())?)?;
            }
            moved.reshape(&[&x.dims()[..x.dims().len() - 1], &[linear.weight.rows()]].concat())
        };
        linears.iter().enumerate().map(output).collect()
    }

    fn params(&self) -> Vec<Param> {
        let own = self.scales.iter().chain(&self.shifts).cloned();
        std::iter::once(self.router.router.clone()).chain(own).collect()
    }
}

impl MethodOptions for Modulate {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &NO_LORA
    }
    fn check(&self) -> Result<()> {
        enough(("top_k", self.choice.top_k), ("num_experts", self.experts.num_experts))
    }
    fn rule(&self) -> Rule {
        Rule::top_k(self.choice.top_k, Gate::Softmax)
    }
    fn router_gradient(&self) -> RouterGradient {
        match self.choice.top_k {
            1 => RouterGradient::No("with top_k = 1 the only gate is always 1, and there is no other loss"),
            _ => RouterGradient::Yes,
        }
    }
    fn row_memory(&self) -> RowMemory {
        RowMemory { per_linear: 7.0 * self.experts.num_experts as f64, ..RowMemory::ROUTED }
    }
    fn site_memory(&self, site: &LinearSite) -> SiteMemory {
        // Outputs before they are modulated, and their scales.
        let outs = site.linears.iter().map(|(_, out)| *out as f64).sum::<f64>();
        SiteMemory { per_row: 2.0 * outs, once: 0.0 }
    }
    fn variants(&self, _factors: &[usize], _r: usize) -> Vec<(String, Tree)> {
        vec![(format!("{} of {}", self.choice.top_k, self.experts.num_experts), Tree::new())]
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let e = self.experts.num_experts;
        let router = TopGates {
            site: at.site.name.clone(),
            linears: at.site.linears.len(),
            options: self.clone(),
            router: at.inputs("router", e)?,
        };
        let shifts = if self.shift { at.outputs("shift", e)? } else { Vec::new() };
        Ok(Arc::new(Modulated { router, scales: at.outputs("scale", e)?, shifts }))
    }
}
