//! Conditional MixLoRA (Shen et al. 2024, ACL long.38): pools of rank-1 factors, of which routers choose r per
//! instance on each side; slot k of A is paired with slot k of B, and B's choice may look at A's.

use crate::mixture::site::part;
use crate::mixture::{
    Ask, Cfs, CfsForm, Factors, Gate, GateScale, LinearBuild, Lora, MethodOptions, RoutedLinears, Router,
    Routes, Rule, Selection,
};
use crate::nn::{LinearAdapter, Param};
use crate::ops::condition_rows::condition_rows;
use crate::ops::topk_routing::{Condition, Routing, Table, first_choices, route};
use crate::tape::recording;
use crate::{Result, Tensor, no_grad};
use std::sync::{Arc, Mutex, MutexGuard};

/// Score only the chosen rows when the pool is at least this many times larger than a batch's choices (costs one extra
/// routing pass).
const FEW: usize = 4;
/// Keep the condition's table between passes when the pool of A is at least this many times as large.
const KEPT: usize = 8;

/// The condition's table where no gradient flows through it, and how often its parameters had changed.
type KeptTable = Option<(Vec<u64>, Tensor)>;

/// Gates on the chosen factors; with them the routers are trained.
#[derive(Debug, Clone, Copy)]
pub struct Gates {
    pub scale: GateScale,
    /// The condition sees A's factors times their gates.
    pub condition_sees_them: bool,
}

/// What the router is built from.
#[derive(Debug, Clone)]
pub struct ConditionalOptions {
    /// Factors that a unit gets on each side.
    pub chosen: usize,
    /// Factors in each pool.
    pub factors: usize,
    pub cfs_form: Option<CfsForm>,
    pub cfs_weight: f32,
    pub gates: Option<Gates>,
}

impl ConditionalOptions {
    /// From the shared groups of a method.
    pub fn new(lora: &Lora, factors: &Factors, cfs: &Cfs, gates: Option<Gates>) -> Self {
        let Cfs { cfs_form, cfs_weight } = *cfs;
        ConditionalOptions { chosen: lora.r, factors: factors.num_factors, cfs_form, cfs_weight, gates }
    }

    /// How each side scores, selects and gates; a condition adds to the scores of B.
    pub fn rule(&self) -> Rule {
        let gate = if self.gates.is_some() { Gate::Softmax } else { Gate::None };
        Rule::top_k(self.chosen, gate)
    }
}

/// Chooses factors per instance on both sides.
pub struct Conditional {
    linears: usize,
    options: ConditionalOptions,
    routing: Routing,
    /// `[L * E, d_in]`
    factors_a: Param,
    /// `[L * 2 * E, d_in]`: A's router, then B's, for each linear.
    routers: Param,
    /// `[L * E * S, d_in]`, S = r (or 1 for the choice form).
    router_cfs: Option<Param>,
    /// `[L * E, d_in]`, choice form only.
    choice_embed: Option<Param>,
    table: Mutex<KeptTable>,
}

impl Conditional {
    /// The layer of a method: fresh pools and this router.
    ///
    /// # Errors
    /// The rank does not fit a linear.
    pub fn adapter(
        method: &dyn MethodOptions,
        at: &LinearBuild<'_>,
        options: &ConditionalOptions,
    ) -> Result<Arc<dyn LinearAdapter>> {
        at.site.fits("r", options.chosen)?;
        let b = at.outputs("factors_b", options.factors)?;
        let a = at.inputs("factors_a", options.factors)?;
        let router = Conditional::new(at, options, &a)?;
        Ok(RoutedLinears::adapter(method, at, router, a, b))
    }

    /// A fresh router for the pool `factors_a`, which its condition looks at.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub fn new(at: &LinearBuild<'_>, options: &ConditionalOptions, factors_a: &Param) -> Result<Self> {
        let ConditionalOptions { chosen: r, factors: e, cfs_form, cfs_weight, gates } = *options;
        let d = at.site.d_in;
        let bound = 1.0 / (d as f32).sqrt();
        let trained = gates.is_some();
        let sides = ["router_a", "router_b"];
        let names = at.site.linears.iter().flat_map(|(n, _)| sides.map(|w| (part(n, w), e))).collect();
        let routers = at.uniform(names, d, bound, trained)?;
        let router_cfs = match cfs_form {
            None => None,
            Some(CfsForm::Choice) => Some(at.uniform(at.site.parts("router_cfs", e), d, bound, trained)?),
            Some(_) => {
                let bound = bound / (r as f32).sqrt();
                Some(at.uniform(at.site.parts("router_cfs", e * r), d, bound, trained)?)
            }
        };
        let choice_embed = match cfs_form {
            Some(CfsForm::Choice) => Some(at.normal(at.site.parts("choice_embed", e), d, 1.0, trained)?),
            _ => None,
        };
        let gate_scale = if gates.is_none_or(|g| g.scale == GateScale::R) { r as f32 } else { 1.0 };
        let condition = cfs_form.map(|form| Condition {
            weight: cfs_weight,
            choice: form == CfsForm::Choice,
            gated_input: gates.is_some_and(|g| g.condition_sees_them) && form != CfsForm::Choice,
        });
        Ok(Conditional {
            linears: at.site.linears.len(),
            options: options.clone(),
            routing: Routing { sides: 2, gate_scale, condition, ..options.rule().routing()? },
            factors_a: factors_a.clone(),
            routers,
            router_cfs,
            choice_embed,
            table: Mutex::default(),
        })
    }

    /// Logits `[G, L, 2, E]`: one pooling and one stacked product for all linears.
    fn logits(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Tensor> {
        let units = &ask.pass.units;
        let h = x.pool_rows(units)?;
        h.matmul_nt(&self.routers.tensor())?.reshape(&[units.count(), self.linears, 2, self.options.factors])
    }

    /// What stands for the A factors `[L * E, d]` in the condition, and its router `[L * E * S, d]`.
    fn condition(&self) -> Result<Option<(Tensor, Tensor)>> {
        let (Some(form), Some(w)) = (self.options.cfs_form, &self.router_cfs) else { return Ok(None) };
        let a = self.factors_a.tensor();
        let w = w.tensor();
        Ok(Some(match (form, &self.choice_embed) {
            (CfsForm::Choice, Some(embed)) => (embed.tensor(), w),
            (CfsForm::SumProduct, _) => {
                (a.sum_last()?.reshape(&[a.dims()[0], 1])?, w.sum_last()?.reshape(&[w.dims()[0], 1])?)
            }
            _ => (a, w),
        }))
    }

    /// Chooses on both sides, B with the condition on A's choice.
    fn route(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let z = self.logits(x, ask)?;
        let units = &ask.pass.units;
        let with = |table| route(&z, None, table, ask.forced, &self.routing, units, 1);
        if FEW * units.count() * self.options.chosen > self.options.factors {
            return with(self.table()?.as_ref().map(Table::Factors));
        }
        let Some((a, w)) = self.condition()? else { return with(None) };
        // Few choices: what the other factors would say is not asked.
        let idx = match ask.forced {
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
        let l = self.linears;
        let e = self.options.factors;
        let batch = |t: &Tensor| t.reshape(&[l, t.dims()[0] / l, t.shape().last()]);
        let slots = w.dims()[0] / (l * e);
        let table = batch(&a)?.matmul_nt(&batch(&w)?)?.reshape(&[l, e, e, slots])?;
        if !table.requires_grad() && KEPT * table.len() <= self.factors_a.value().len() {
            *self.kept() = Some((changes, table.clone()));
        }
        Ok(Some(table))
    }

    fn kept(&self) -> MutexGuard<'_, KeptTable> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Router for Conditional {
    const UNIT: Routes = Routes::Instance;

    fn pool(&self) -> (usize, usize) {
        (self.options.factors, 1)
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        // Without gates nothing can flow back through a choice.
        if self.options.gates.is_some() { self.route(x, ask) } else { no_grad(|| self.route(x, ask)) }
    }

    fn params(&self) -> Vec<Param> {
        let optional = self.router_cfs.iter().chain(&self.choice_embed).cloned();
        std::iter::once(self.routers.clone()).chain(optional).collect()
    }
}
