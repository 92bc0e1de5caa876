//! `mora-cl`: rank-1 experts that are chosen by their own activation, made to grow task by task (arXiv:2506.21035).
//!
//! `u = A x`, `n = u / |u|`, scores `softmax(n / tau)` over all rows; in training the `top_k` best, at inference those above
//! `threshold`; `y = W x + s sum over them of score_i u_i b_i`. The first `frozen_rows` act, but are not trained: they are what
//! earlier tasks learned.

use crate::mixture::losses::normalised;
use crate::mixture::{
    Ask, Axes, Gate, LinearBuild, Lora, MethodOptions, MethodSpec, Prunes, RoutedLinears, Router,
    RouterGradient, Routes, RowMemory, Rule, Score, Select, Selection, TopK, Tree, enough,
};
use crate::nn::{LinearAdapter, Param};
use crate::ops::select::SelectRule;
use crate::{Error, Result, Tensor, options};
use serde_json::Value;
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "mora-cl",
    paper: "MoRA (Little by Little), arXiv:2506.21035",
    when: "tasks that come one after another and must not be forgotten",
    equation: "u = A x, n = u / |u|, score = softmax(n / tau); y = W x + s sum over the chosen of score_i u_i b_i\nchosen: the top k in training, score > threshold at inference",
    differs: "Without code by the authors: signed activations, normalised over all rows, are our reading.",
    axes: Axes {
        input: "the entry's own activation",
        entry: "rank-1 row",
        balance: "none",
        trained: "rows that are not frozen",
    },
    routes: Routes::Token,
    trainable: "(r - frozen_rows) (d_in + d_out)",
    options: || Box::new(MoraCl::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `mora-cl`.
    pub struct MoraCl use [lora: Lora { r: 16, lora_alpha: Some(16.0) }, choice: TopK { top_k: 8 }] {
        /// What normalised activations are divided by.
        tau: f32 = 0.5, in 0.001.., "arXiv:2506.21035";
        /// Score above which a row acts at inference.
        threshold: f32 = 0.0, in 0.0..1.0, "arXiv:2506.21035";
        /// First rows that act without being trained.
        frozen_rows: usize = 0, "arXiv:2506.21035";
    }
}

/// Added to the squared norm of the activations.
const EPS: f32 = 1e-12;

/// Chooses rows by their own products.
struct Own {
    linears: usize,
    options: MoraCl,
    a: Param,
}

impl Router for Own {
    const UNIT: Routes = Routes::Token;

    fn pool(&self) -> (usize, usize) {
        (self.options.lora.r, 1)
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let m = x.shape().rows();
        let rows = x.reshape(&[m, x.shape().last()])?;
        let u = rows.matmul_nt(&self.a.tensor())?.reshape(&[m, self.linears, self.options.lora.r])?;
        let scores = normalised(&u, EPS)?.scale(1.0 / self.options.tau)?.softmax()?;
        let rule = if ask.pass.train {
            SelectRule::TopK(self.options.choice.top_k)
        } else {
            SelectRule::Above(self.options.threshold)
        };
        let mask = ask.forced.map_or_else(|| scores.detach().select(&rule), |mask| Ok(mask.clone()))?;
        Selection::dense(scores.mul(&mask)?, Some(mask), &ask.pass.units, 1)
    }
}

impl MethodOptions for MoraCl {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn check(&self) -> Result<()> {
        enough(("top_k", self.choice.top_k), ("r", self.lora.r))?;
        if self.frozen_rows >= self.lora.r {
            return Err(Error::config("frozen_rows", self.frozen_rows, format!("below r ({})", self.lora.r)));
        }
        Ok(())
    }
    /// As many rows again for each stage; those of the stages before stay as they are.
    fn at_stage(&self, stage: usize, _task: Option<&str>) -> Tree {
        let grown = |v: f32| Value::from(v * (stage + 1) as f32);
        let r = self.lora.r;
        Tree::from_iter([
            ("r".to_string(), (r * (stage + 1)).into()),
            ("lora_alpha".to_string(), grown(self.alpha())),
            ("frozen_rows".to_string(), (r * stage).into()),
        ])
    }
    fn rule(&self) -> Rule {
        Rule { score: Score::Activation, select: Select::TopK(self.choice.top_k), gate: Gate::Score }
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::Yes
    }
    fn prunes(&self) -> Prunes {
        if self.frozen_rows > 0 {
            return Prunes::No(
                "some of its rows are frozen, as many for all linears, and these would become different numbers",
            );
        }
        Prunes::pairs("r", Vec::new())
    }
    fn row_memory(&self) -> RowMemory {
        RowMemory { per_linear: 7.0 * self.lora.r as f64, ..RowMemory::ROUTED }
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        // The pool may hold more rows than one update can use.
        at.site.fits("top_k", self.choice.top_k)?;
        let r = self.lora.r;
        let a = at.inputs("lora_a", r)?;
        let b = at.outputs("lora_b", r)?;
        if self.frozen_rows > 0 {
            for param in std::iter::once(&a).chain(&b) {
                param
                    .parts()
                    .iter()
                    .try_for_each(|(part, _)| param.freeze_rows(part, 0..self.frozen_rows))?;
            }
        }
        let router = Own { linears: at.site.linears.len(), options: self.clone(), a: a.clone() };
        Ok(RoutedLinears::adapter(self, at, router, a, b))
    }
}
