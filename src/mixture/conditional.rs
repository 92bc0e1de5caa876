//! Conditional MixLoRA (Shen et al. 2024, ACL long.38): pools of rank-1 factors, of which routers choose r per
//! instance on each side; slot k of A is paired with slot k of B, and B's choice may look at A's.
//!
//! `mixlora-cond`, `mixlora-cond-gated` and `vt-nlp` are this layer with different options.

use super::spec::{LinearSite, part};
use super::{CfsForm, GateScale, MethodConfig, Selection};
use crate::nn::{LinearAdapter, Param, Pass};
use crate::ops::condition_rows::condition_rows;
use crate::ops::mixture_linears::mixture_linears;
use crate::ops::topk_routing::{Condition, Routing, Table, first_choices, route};
use crate::tape::recording;
use crate::{Device, Linear, Result, Stream, Tensor, no_grad};
use std::sync::{Arc, Mutex, MutexGuard};

/// A pool of so many times a batch's choices is asked for their rows alone: to choose A's first is a pass of its own.
const FEW: usize = 4;
/// A condition's table is kept between passes if the pool of A is so many times as large.
const KEPT: usize = 8;

/// The condition's table where no gradient flows through it, and how often its parameters had changed.
type KeptTable = Option<(Vec<u64>, Tensor)>;

pub(super) struct Conditional {
    site: LinearSite,
    config: MethodConfig,
    routing: Routing,
    /// `[L * E, d_in]`
    factors_a: Param,
    /// One `[E, d_out]` per linear.
    factors_b: Vec<Param>,
    /// `[L * 2 * E, d_in]`: A's router, then B's, for each linear.
    routers: Param,
    /// `[L * E * S, d_in]`, S = r (or 1 for the choice form).
    router_cfs: Option<Param>,
    /// `[L * E, d_in]`, choice form only.
    choice_embed: Option<Param>,
    table: Mutex<KeptTable>,
}

pub(super) fn check(c: &MethodConfig) -> Result<()> {
    MethodConfig::choose(("r", c.r), ("num_factors", c.num_factors))
}

pub(super) fn build(
    c: &MethodConfig,
    site: &LinearSite,
    device: &Device,
    stream: Stream,
) -> Result<Arc<dyn LinearAdapter>> {
    site.fits("r", c.r)?;
    let (e, d) = (c.num_factors, site.d_in);
    let bound = 1.0 / (d as f32).sqrt();
    let slots = if c.cfs_form == Some(CfsForm::Choice) { 1 } else { c.r };
    // Every part has its own stream: its values do not depend on its neighbours.
    let make = |parts: Vec<(String, usize)>, bound: f32, trained: bool| {
        Param::drawn(device, parts, d, trained, |name, n| stream.named(name).uniform_vec(n, bound))
    };
    let routers =
        site.linears.iter().flat_map(|(n, _)| ["router_a", "router_b"].map(|w| (part(n, w), e))).collect();
    let factors_b = site
        .linears
        .iter()
        .map(|(n, out)| Param::new(part(n, "factors_b"), Tensor::zeros(device, &[e, *out])?, true))
        .collect::<Result<_>>()?;
    let router_cfs = match c.cfs_form {
        None => None,
        Some(CfsForm::Choice) => Some(make(site.parts("router_cfs", e), bound, c.gated)?),
        Some(_) => Some(make(site.parts("router_cfs", e * slots), bound / (c.r as f32).sqrt(), c.gated)?),
    };
    let choice_embed = match c.cfs_form {
        Some(CfsForm::Choice) => {
            Some(Param::drawn(device, site.parts("choice_embed", e), d, c.gated, |name, n| {
                stream.named(name).normal_vec(n, 1.0)
            })?)
        }
        _ => None,
    };
    let gate_scale = if c.gate_scale == GateScale::R { c.r as f32 } else { 1.0 };
    let condition = c.cfs_form.map(|form| Condition {
        weight: c.cfs_weight,
        choice: form == CfsForm::Choice,
        gated_input: c.cfs_gated_input && form != CfsForm::Choice,
    });
    Ok(Arc::new(Conditional {
        site: site.clone(),
        config: c.clone(),
        routing: Routing { sides: 2, gated: c.gated, gate_scale, condition, ..Routing::new(c.r) },
        factors_a: make(site.parts("factors_a", e), bound, true)?,
        factors_b,
        routers: make(routers, bound, c.gated)?,
        router_cfs,
        choice_embed,
        table: Mutex::default(),
    }))
}

impl Conditional {
    /// Logits `[G, L, 2, E]`: one pooling and one stacked product for all linears.
    fn logits(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (l, e) = (self.site.linears.len(), self.config.num_factors);
        let h = x.pool_rows(&pass.units)?;
        h.matmul_nt(&self.routers.tensor())?.reshape(&[pass.units.count(), l, 2, e])
    }

    /// What stands for the A factors `[L * E, d]` in the condition, and its router `[L * E * S, d]`.
    fn condition(&self) -> Result<Option<(Tensor, Tensor)>> {
        let (Some(form), Some(w)) = (self.config.cfs_form, &self.router_cfs) else { return Ok(None) };
        let (a, w) = (self.factors_a.tensor(), w.tensor());
        Ok(Some(match (form, &self.choice_embed) {
            (CfsForm::Choice, Some(embed)) => (embed.tensor(), w),
            (CfsForm::SumProduct, _) => {
                (a.sum_last()?.reshape(&[a.dims()[0], 1])?, w.sum_last()?.reshape(&[w.dims()[0], 1])?)
            }
            _ => (a, w),
        }))
    }

    /// Chooses on both sides, B with the condition on A's choice.
    fn route(&self, x: &Tensor, pass: &Pass) -> Result<Selection> {
        let z = self.logits(x, pass)?;
        let forced = pass.choices.forced(&self.site.name)?;
        let with = |table| route(&z, None, table, forced.as_ref(), &self.routing, &pass.units, 1);
        if FEW * pass.units.count() * self.config.r > self.config.num_factors {
            return with(self.table()?.as_ref().map(Table::Factors));
        }
        let Some((a, w)) = self.condition()? else { return with(None) };
        // Few choices: what the other factors would say is not asked.
        let idx = match &forced {
            Some(idx) => idx.clone(),
            None => first_choices(&z, &self.routing)?,
        };
        with(Some(Table::Choices(&condition_rows(&a, &w, &idx)?)))
    }

    /// `C[l, e', e, k]`: what choosing A factor e' in slot k says for B factor e. It depends on parameters alone: where no
    /// gradient flows through it, and it is small beside them, it is made once for all passes between two steps.
    fn table(&self) -> Result<Option<Tensor>> {
        let of = [Some(&self.factors_a), self.router_cfs.as_ref(), self.choice_embed.as_ref()];
        let changes: Vec<u64> = of.into_iter().flatten().map(Param::changes).collect();
        if !recording(&[&self.factors_a.tensor()])
            && let Some((of, table)) = &*self.kept()
            && *of == changes
        {
            return Ok(Some(table.clone()));
        }
        // The lock is not held meanwhile: the thread may come by another pass while it waits for the product.
        let Some((a, w)) = self.condition()? else { return Ok(None) };
        let (l, e) = (self.site.linears.len(), self.config.num_factors);
        let batch = |t: &Tensor| t.reshape(&[l, t.dims()[0] / l, t.shape().last()]);
        let slots = w.dims()[0] / (l * e);
        let table = batch(&a)?.matmul_nt(&batch(&w)?)?.reshape(&[l, e, e, slots])?;
        if !table.requires_grad() && KEPT * table.len() <= self.factors_a.value().len() {
            *self.kept() = Some((changes, table.clone()));
        }
        Ok(Some(table))
    }

    fn kept(&self) -> MutexGuard<'_, KeptTable> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Routes, or takes what the pass says.
    fn select(&self, x: &Tensor, pass: &Pass) -> Result<Selection> {
        if let Some(kept) = pass.choices.frozen(&self.site.name) {
            return Selection::new(kept.idx, kept.gates, &pass.units, self.config.num_factors, 1);
        }
        // Without gates nothing can flow back through a choice.
        let s = match self.config.gated {
            true => self.route(x, pass)?,
            false => no_grad(|| self.route(x, pass))?,
        };
        pass.choices.keep(&self.site.name, &s);
        Ok(s)
    }
}

impl LinearAdapter for Conditional {
    fn forward(&self, x: &Tensor, linears: &[Linear], pass: &Pass) -> Result<Vec<Tensor>> {
        let s = self.select(x, pass)?;
        let b: Vec<Tensor> = self.factors_b.iter().map(Param::tensor).collect();
        let scale = self.config.scaling(self.config.r);
        let dropout = pass.dropout(&self.site.name, self.config.lora_dropout);
        mixture_linears(x, linears, &self.factors_a.tensor(), &b, &s, scale, dropout)
    }

    fn params(&self) -> Vec<Param> {
        let mut all = vec![self.factors_a.clone()];
        all.extend(self.factors_b.clone());
        all.push(self.routers.clone());
        all.extend(self.router_cfs.clone());
        all.extend(self.choice_embed.clone());
        all
    }
}
