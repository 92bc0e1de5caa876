//! Conditional MixLoRA (Shen et al. 2024, ACL long.38): pools of rank-1 factors, of which routers choose r per
//! instance on each side; slot k of A is paired with slot k of B, and B's choice may look at A's.

use super::Single;
use crate::mixture::site::part;
use crate::mixture::{
    Ablations, Ask, Cfs, CfsForm, Conditioned, Factors, Gate, GateScale, LinearBuild, Lora, MethodOptions,
    RoutedLinears, Router, RouterInput, Routes, Rule, Selection, Units,
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
    pub ablations: Ablations,
    pub condition: Conditioned,
}

impl ConditionalOptions {
    /// From the shared groups of a method.
    pub fn new(lora: &Lora, factors: &Factors, cfs: &Cfs, gates: Option<Gates>) -> Self {
        let Cfs { cfs_form, cfs_weight } = *cfs;
        ConditionalOptions {
            chosen: lora.r,
            factors: factors.num_factors,
            cfs_form,
            cfs_weight,
            gates,
            ablations: Ablations::default(),
            condition: Conditioned::default(),
        }
    }

    /// The same with other routing.
    pub fn routed(self, ablations: &Ablations, condition: &Conditioned) -> Self {
        ConditionalOptions { ablations: ablations.clone(), condition: condition.clone(), ..self }
    }

    /// Whether A has a pool to choose from, or one matrix for all.
    fn chooses_a(&self) -> bool {
        self.ablations.mix_lora_a
    }

    /// Rows of A for each linear.
    fn rows_of_a(&self) -> usize {
        if self.chooses_a() { self.factors } else { self.chosen }
    }

    /// Sides on which there are choices: 1 where B takes A's.
    fn sides(&self) -> usize {
        if self.ablations.independent_rank { 2 } else { 1 }
    }

    /// Numbers that a router reads.
    fn router_width(&self, d_in: usize) -> Result<usize> {
        match self.ablations.router_input {
            RouterInput::Condition => self.condition.width(),
            _ => Ok(d_in),
        }
    }

    /// How each side scores, selects and gates; a condition adds to the scores of B.
    pub fn rule(&self) -> Rule {
        let gate = if self.gates.is_some() { Gate::Softmax } else { Gate::None };
        Rule::top_k(self.chosen, gate)
    }
}

/// Chooses factors per instance on both sides.
pub struct Conditional {
    site: String,
    linears: usize,
    options: ConditionalOptions,
    routing: Routing,
    /// `[L * E, d_in]`
    factors_a: Param,
    /// `[L * 2 * E, d_in]`: A's router, then B's, for each linear; those of the sides that they choose on, as wide as what
    /// they look at. None where factors are drawn.
    routers: Option<Param>,
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
        let options = &options.clone().routed(&options.ablations.at(at.site.part), &options.condition);
        if options.ablations.is_below_start(at.site.depth)? {
            let lora = Single { linears: at.site.linears.len(), rank: options.chosen };
            return RoutedLinears::of_experts(method, at, lora);
        }
        let b = at.outputs("factors_b", options.factors)?;
        let a = at.inputs("factors_a", options.rows_of_a())?;
        let router = Conditional::new(at, options, &a)?;
        Ok(RoutedLinears::adapter(method, at, router, a, b))
    }

    /// A fresh router for the pool `factors_a`, which its condition looks at.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub fn new(at: &LinearBuild<'_>, options: &ConditionalOptions, factors_a: &Param) -> Result<Self> {
        let ConditionalOptions { chosen: r, factors: e, cfs_form, cfs_weight, gates, .. } = *options;
        let d = at.site.d_in;
        let bound = 1.0 / (d as f32).sqrt();
        let trained = gates.is_some();
        let width = options.router_width(d)?;
        let sides = options.ablations.routed_sides();
        let names = |(linear, _): &(String, usize)| {
            sides.iter().map(|side| (part(linear, side), e)).collect::<Vec<_>>()
        };
        let names: Vec<(String, usize)> = at.site.linears.iter().flat_map(names).collect();
        let routers = (!names.is_empty())
            .then(|| at.uniform(names, width, 1.0 / (width as f32).sqrt(), trained))
            .transpose()?;
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
            site: at.site.name.clone(),
            linears: at.site.linears.len(),
            options: options.clone(),
            routing: Routing { sides: options.sides(), gate_scale, condition, ..options.rule().routing()? },
            factors_a: factors_a.clone(),
            routers,
            router_cfs,
            choice_embed,
            table: Mutex::default(),
        })
    }

    /// Logits `[G, L, sides, E]`, of the sides that are chosen on: one pooling and one stacked product for all linears. Where
    /// factors are drawn, random numbers: the largest of them are a uniform draw.
    fn logits(&self, x: &Tensor, ask: &Ask<'_>) -> Result<(Tensor, Units)> {
        let units = &ask.pass.units;
        let sides = if self.options.chooses_a() { self.options.sides() } else { 1 };
        let dims = |units: &Units| [units.count(), self.linears, sides, self.options.factors];
        let Some(routers) = &self.routers else {
            return Ok((ask.pass.noise(&self.site, x.device(), &dims(units))?, units.clone()));
        };
        if self.options.ablations.router_input == RouterInput::Condition {
            let (conditions, units) = self.options.condition.units_of(ask.pass, x.shape().rows())?;
            let z = conditions.matmul_nt(&routers.tensor())?.reshape(&dims(&units))?;
            return Ok((z, units));
        }
        let h = x.pool_rows(units)?;
        Ok((h.matmul_nt(&routers.tensor())?.reshape(&dims(units))?, units.clone()))
    }

    /// Noise for scores `[G, L, sides, E]`.
    fn noise(&self, z: &Tensor, ask: &Ask<'_>) -> Result<Tensor> {
        ask.pass.noise(&self.site, z.device(), z.dims())?.scale(1.0 / self.options.chosen as f32)
    }

    /// The scores of both sides with noise, `[G, L, 2, E]`: A's logits, and `softmax(z) + weight softmax(q)` of B, for which
    /// A has chosen already.
    fn fused(&self, z: &Tensor, ask: &Ask<'_>) -> Result<Tensor> {
        let noise = self.noise(z, ask)?;
        let (Some(condition), Some((a, w))) = (&self.routing.condition, self.condition()?) else {
            return z.add(&noise);
        };
        let idx = match ask.forced {
            Some(idx) => idx.clone(),
            None => first_choices(&z.add(&noise)?, &self.routing)?,
        };
        let table = condition_rows(&a, &w, &idx)?;
        let [l, g, k, e] = *table.dims() else { return Ok(table) };
        let rows = table.reshape(&[l * g * k, e])?;
        let q = if condition.choice {
            rows.sum_groups(k)?.scale(1.0 / k as f32)?
        } else {
            rows.softmax()?.sum_groups(k)?
        };
        // Rows are by unit, linear and side; those of the condition by linear and unit.
        let order: Vec<u32> = (0..2 * l * g).map(|i| (i / 2 % l * g + i / (2 * l)) as u32).collect();
        let q = q.softmax()?.gather_rows(&Tensor::from_u32(z.device(), &[2 * l * g], &order)?)?;
        let z = z.reshape(&[2 * l * g, e])?;
        let of_b = z.softmax()?.add_scaled(&q, condition.weight)?;
        let scores = z.mul(&side(&z, 0)?)?.add(&of_b.mul(&side(&z, 1)?)?)?;
        scores.reshape(noise.dims())?.add(&noise)
    }

    /// B's scores `[G, L, 1, E]` beside equal ones of A, of which the first r are taken in their order.
    fn beside_equal(&self, z: &Tensor) -> Result<Tensor> {
        let [g, l, _, e] = *z.dims() else { return Ok(z.clone()) };
        let both = z.reshape(&[g * l, e])?.repeat_rows(2)?;
        both.mul(&side(&both, 1)?)?.add(&side(&both, 0)?)?.reshape(&[g, l, 2, e])
    }

    /// Chooses by scores that no condition adds to.
    fn ranked(&self, z: &Tensor, ask: &Ask<'_>, units: &Units) -> Result<Selection> {
        let routing = Routing { condition: None, ..self.routing.clone() };
        if self.options.chooses_a() {
            return route(z, None, None, ask.forced, &routing, units, 1);
        }
        let choice = route(&self.beside_equal(z)?, None, None, ask.forced, &routing, units, 1)?;
        let choice = choice.with_rows_of_a(self.options.chosen)?;
        // A has no gates; those of equal scores are 1 / r, times the scale.
        match choice.gates().map(|gates| gates.scale(self.options.chosen as f32 / routing.gate_scale)) {
            Some(gates) => Ok(choice.with_gates(gates?)),
            None => Ok(choice),
        }
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
        let (z, units) = self.logits(x, ask)?;
        if self.options.ablations.add_noise {
            return self.ranked(&self.fused(&z, ask)?, ask, &units);
        }
        if self.routing.condition.is_none() {
            return self.ranked(&z, ask, &units);
        }
        let with = |table| route(&z, None, table, ask.forced, &self.routing, &units, 1);
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

/// 1 for the rows of a side, 0 for those of the other, of two that alternate.
fn side(rows: &Tensor, side: usize) -> Result<Tensor> {
    let m = rows.shape().rows();
    let ones: Vec<f32> = (0..m).map(|row| f32::from(u8::from(row % 2 == side))).collect();
    Tensor::from_f32(rows.device(), &[m, 1], &ones)
}

impl Router for Conditional {
    const UNIT: Routes = Routes::Instance;

    fn pool(&self) -> (usize, usize) {
        (self.options.factors, 1)
    }

    fn rows_of_a(&self) -> Option<usize> {
        (!self.options.chooses_a()).then_some(self.options.chosen)
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        // Without gates nothing can flow back through a choice.
        if self.options.gates.is_some() { self.route(x, ask) } else { no_grad(|| self.route(x, ask)) }
    }

    fn params(&self) -> Vec<Param> {
        let optional = self.router_cfs.iter().chain(&self.choice_embed).cloned();
        self.routers.iter().cloned().chain(optional).collect()
    }
}
