//! Top-k routing: from logits to ordered choices and gates, for all linears that read one input.
//!
//! Ordered: slot k of A is paired with slot k of B, so the order is part of the choice. Ties go to the lowest
//! index. The mathematics for one unit is in `topk_routing/math.rs`; derivation: Shen et al. 2024 (ACL, long.38),
//! checked against central differences.

mod backward;
mod cases;
mod cpu;
#[cfg(feature = "gpu")]
mod gpu;
mod math;
mod rows;
mod rules;

use self::backward::{Backward, TableGrad};
use self::cpu::OneSide;
use self::math::{Choice, Unit, Values};
pub use self::rows::route_rows;
pub use self::rules::{Condition, Routing, Score, Table};
use crate::device::{Entry, Host, PORTABLE, Shader, Variant, parts};
use crate::engine::{Meta, Op, OpSpec, run};
use crate::routing::{Selection, Units};
use crate::tape::{Node, recording};
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "topk_routing",
    formula: "I = top-k of z_a, J = top-k of z_b | condition on I, gates = softmax over the chosen",
    shaders: &[&SHADER],
    cases: cases::cases,
};

const NAME: &str = "topk_routing";
const WG: u32 = 64;
const PARTS_WIDE: &[&str] = &[parts::GRID, parts::SUM, parts::BEST];
const PARTS_LANE: &[&str] = &[parts::GRID, parts::SUM_LANE, parts::BEST_LANE];

macro_rules! variants {
    ($($name:literal: $parts:ident $stride:literal $k:literal $sides:literal $score:literal $cfs:literal $gated:literal $scaled:literal $forced:literal $chosen:literal $sparse:literal,)+) => {
        &[$(Variant {
            name: $name,
            consts: &[
                ("WG", WG), ("STRIDE", $stride), ("K", $k), ("SIDES", $sides), ("SCORE", $score), ("CFS", $cfs),
                ("GATED", $gated), ("SCALED", $scaled), ("FORCED", $forced), ("CHOSEN", $chosen), ("SPARSE", $sparse),
            ],
            parts: $parts,
            backends: PORTABLE,
            workgroup_bytes: if $stride == 1 { 0 } else { 12 * WG },
        }),+]
    };
}
static FORWARD: &[Variant] = variants![
    "wide ifs": PARTS_WIDE 64 4 2 0 0 0 0 0 0 0,
    "wide cfs gated": PARTS_WIDE 64 4 2 0 1 1 1 0 0 0,
    "wide cfs rows": PARTS_WIDE 64 4 2 0 1 1 0 0 1 0,
    "wide choice forced": PARTS_WIDE 64 2 2 0 2 1 0 1 0 0,
    "lane softmax": PARTS_LANE 1 2 1 0 0 1 0 0 0 0,
    "lane sigmoid": PARTS_LANE 1 8 1 1 0 1 0 0 0 0,
    "lane magnitude": PARTS_LANE 1 8 1 2 0 0 0 0 0 0,
];
static BACKWARD: &[Variant] = variants![
    "wide ifs": PARTS_WIDE 64 4 2 0 0 1 0 0 0 0,
    "wide cfs": PARTS_WIDE 64 4 2 0 1 1 1 0 0 0,
    "wide cfs rows": PARTS_WIDE 64 4 2 0 1 1 0 0 1 0,
    "wide choice": PARTS_WIDE 64 2 2 0 2 1 0 0 0 0,
    "wide choice rows": PARTS_WIDE 64 2 2 0 2 1 0 0 1 0,
    "lane softmax": PARTS_LANE 1 2 1 0 0 1 0 0 0 0,
    "lane sigmoid": PARTS_LANE 1 8 1 1 0 1 0 0 0 0,
    "lane sigmoid sparse": PARTS_LANE 1 8 1 1 0 1 0 0 0 1,
];
static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../../shaders/topk_routing.wgsl"),
    entries: &[
        Entry { name: "forward", variants: FORWARD },
        Entry { name: "backward", variants: BACKWARD },
        Entry { name: "table", variants: BACKWARD },
    ],
};

/// Inputs of the op besides the logits.
#[derive(Clone, Copy, Default)]
struct Extra<'a> {
    bias: Option<&'a Tensor>,
    table: Option<Table<'a>>,
    /// Choices to take instead of the best ones.
    forced: Option<&'a Tensor>,
}

/// `z [G, L, SIDES, E] -> idx [L, SIDES, G, K] [, gates [L, G, K]] [, score_b [L, G, E]]`
struct Forward<'a> {
    routing: &'a Routing,
    extra: Extra<'a>,
}

/// `(units, linears, factors)` of logits.
fn sizes(z: &Tensor) -> (usize, usize, usize) {
    (z.dims()[0], z.dims()[1], z.dims()[3])
}

/// Calls `f` with the mathematics of every (linear, unit).
fn for_units<R: Send>(
    routing: &Routing,
    extra: &Extra<'_>,
    z: &Tensor,
    f: impl Fn(usize, usize, Unit<'_>) -> R + Sync,
) -> Vec<R> {
    let (units, linears, e) = sizes(z);
    let one = |i: usize| {
        let (l, unit) = (i / units.max(1), i % units.max(1));
        let at = (unit * linears + l) * routing.sides * e;
        let za = wide(z, at, e);
        let zb = if routing.sides == 2 { wide(z, at + e, e) } else { vec![] };
        let bias = extra.bias.map_or(vec![], |b| wide(b, l * e, e));
        let table = extra.table.map(|table| {
            let (at, n) = match table {
                Table::Factors(_) => (l, e * e * routing.table_slots()),
                Table::Choices(_) => (l * units + unit, routing.k * e),
            };
            match table.tensor().host() {
                Host::F64(v) => Values::F64(&v[at * n..(at + 1) * n]),
                h => Values::F32(&h.f32()[at * n..(at + 1) * n]),
            }
        });
        let of_choices = Table::of_choices(&extra.table);
        f(l, unit, Unit { routing, za: &za, zb: &zb, bias: &bias, table, of_choices })
    };
    (0..units * linears).into_par_iter().map(one).collect()
}

/// The lane of one side, for logits in host memory.
fn one_side<'a>(routing: &'a Routing, extra: &Extra<'a>, z: &'a Tensor) -> OneSide<'a> {
    OneSide { routing, z: z.f32(), bias: extra.bias.map(|b| b.f32()), sizes: sizes(z) }
}

/// Values `at .. at + n` of a host tensor, in f64.
fn wide(t: &Tensor, at: usize, n: usize) -> Vec<f64> {
    match t.host() {
        Host::F64(v) => v[at..at + n].to_vec(),
        h => h.f32()[at..at + n].iter().map(|&v| v as f64).collect(),
    }
}

/// Writes values into a host buffer of either type.
fn put(y: &mut Host, at: usize, values: &[f64]) {
    match y {
        Host::F64(y) => y[at..at + values.len()].copy_from_slice(values),
        y => y.f32_mut()[at..].iter_mut().zip(values).for_each(|(y, v)| *y = *v as f32),
    }
}

impl Op for Forward<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        let (r, z) = (self.routing, x[0]);
        z.expect(NAME, DType::F32)?;
        let bad = |what: String| Err(Error::shape(NAME, what));
        let [g, l, sides, e] = *z.dims() else {
            return bad(format!("logits {} are not [units, linears, sides, factors]", z.shape()));
        };
        if sides != r.sides || !(1..=2).contains(&sides) || r.k == 0 || r.k > e {
            return bad(format!("logits {}: cannot choose {} on {} sides", z.shape(), r.k, r.sides));
        }
        let same = |t: Option<&Tensor>, dims: &[usize]| t.is_none_or(|t| t.dims() == dims);
        let table = match self.extra.table {
            Some(Table::Choices(_)) => [l, g, r.k, e],
            _ => [l, e, e, r.table_slots()],
        };
        if !same(self.extra.bias, &[l, e])
            || !same(self.extra.table.map(|t| t.tensor()), &table)
            || !same(self.extra.forced, &[l, sides, g, r.k])
        {
            return bad(format!("bias, table or forced choices do not fit logits {} and {r:?}", z.shape()));
        }
        let needs_table = r.condition.is_some();
        let needs_bias = r.score != Score::Logits;
        if needs_table != self.extra.table.is_some()
            || needs_bias != self.extra.bias.is_some()
            || (needs_table && sides == 1)
        {
            return bad(format!("table and bias must be given exactly where the routing uses them: {r:?}"));
        }
        let mut out = vec![Meta::u32(&[l, sides, g, r.k])?];
        if r.gated {
            out.push(Meta::f32(&[l, g, r.k])?);
        }
        Ok(out)
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let (units, _, _) = sizes(x[0]);
        let k = self.routing.k;
        let sides = self.routing.sides;
        let choices = for_units(self.routing, &self.extra, x[0], |l, unit, u| {
            let list = |side: usize| ((l * sides + side) * units + unit) * k;
            let forced = self.extra.forced.map(|t| {
                let of = |side: usize| &t.u32()[list(side)..][..k];
                (of(0), if sides == 2 { of(1) } else { &[][..] })
            });
            (l, unit, u.forward(forced))
        });
        for (l, unit, Choice { a, b, gates }) in choices {
            let list = |side: usize| ((l * sides + side) * units + unit) * k;
            y[0].u32_mut()[list(0)..][..k].copy_from_slice(&a);
            if sides == 2 {
                y[0].u32_mut()[list(1)..][..k].copy_from_slice(&b);
            }
            if self.routing.gated {
                put(&mut y[1], (l * units + unit) * k, &gates);
            }
        }
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        if self.routing.sides == 2 {
            // Two sides have few units: the specification itself, units in parallel.
            return self.reference(x, y);
        }
        let side = one_side(self.routing, &self.extra, x[0]);
        let (idx, gates) = y.split_at_mut(1);
        let idx = idx[0].u32_mut();
        match self.extra.forced {
            Some(forced) => idx.copy_from_slice(forced.u32()),
            None => side.choose(idx),
        }
        if let [gates] = gates {
            side.gates(idx, gates.f32_mut());
        }
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        use crate::device::Bind;
        let (units, linears, e) = sizes(x[0]);
        let z = x[0].buffer();
        let scratch = gpu.alloc(if self.routing.condition.is_some() { linears * units * e } else { 1 })?;
        let no_gates = if self.routing.gated { None } else { Some(gpu.alloc(1)?) };
        let bind = [
            Bind::Read(z),
            Bind::or_unused(self.extra.bias.map(|t| t.buffer()), z),
            Bind::or_unused(self.extra.table.map(|t| t.tensor().buffer()), z),
            Bind::or_unused(self.extra.forced.map(|t| t.buffer()), z),
            Bind::Write(y[0].buffer()),
            Bind::Write(no_gates.as_ref().unwrap_or_else(|| y[1].buffer())),
            Bind::Write(&scratch),
        ];
        let launch =
            gpu::Launch { entry: "forward", routing: self.routing, extra: &self.extra, sparse: false };
        launch.run(gpu, x[0], &bind, linears * units)
    }
}

/// The choices `[L, SIDES, G, K]` of both sides without the condition: side 0 is what [`route`] takes for A.
///
/// # Errors
/// As [`route`].
pub fn first_choices(z: &Tensor, routing: &Routing) -> Result<Tensor> {
    let plain = Routing { gated: false, condition: None, ..routing.clone() };
    Ok(run(&Forward { routing: &plain, extra: Extra::default() }, &[&z.detach()])?.swap_remove(0))
}

/// Chooses factors for every routing unit; see [`Routing`] for the rules.
///
/// `z [G, L, SIDES, E]` are logits, `bias [L, E]` a balancing bias (no gradient), `table` the
/// condition of B's choice on A's. `forced` choices `[L, SIDES, G, K]` are taken as they are, and gates are
/// computed for them. `block` is the number of pool rows that one choice stands for.
///
/// Gradients flow from the gates to the logits and the table.
///
/// # Errors
/// The shapes do not fit, `k` is more than the factors, or on a host device a forced index is too large.
pub fn route(
    z: &Tensor,
    bias: Option<&Tensor>,
    table: Option<Table<'_>>,
    forced: Option<&Tensor>,
    routing: &Routing,
    units: &Units,
    block: usize,
) -> Result<Selection> {
    let extra = Extra { bias, table, forced };
    if let Some(t) = forced {
        t.expect(NAME, DType::U32)?;
        // Kernels clamp what they read; host lanes would stop.
        if let Some(e) = t.first_above(z.shape().last()) {
            return Err(Error::shape(
                NAME,
                format!("choice {e}, but there are {} factors", z.shape().last()),
            ));
        }
    }
    let mut inputs = vec![z];
    inputs.extend(bias);
    inputs.extend(table.map(|t| t.tensor()));
    inputs.extend(forced);
    let mut out = run(&Forward { routing, extra }, &inputs)?;
    let mut gates = if routing.gated { out.pop() } else { None };
    let idx = out.swap_remove(0);
    let mut graph = vec![z];
    graph.extend(table.map(|t| t.tensor()));
    if let Some(g) = gates.take() {
        gates = Some(match recording(&graph) {
            false => g,
            true => {
                let (routing, idx, zd) = (routing.clone(), idx.clone(), z.detach());
                let (bias, of_choices) = (bias.cloned(), Table::of_choices(&table));
                let values = table.map(|t| t.tensor().detach());
                Node::record(NAME, &graph, g, move |dg| {
                    let table = values.as_ref().map(|t| match of_choices {
                        true => Table::Choices(t),
                        false => Table::Factors(t),
                    });
                    let extra = Extra { bias: bias.as_ref(), table, forced: None };
                    let mut d =
                        run(&Backward { routing: &routing, extra, idx: &idx, sparse: false }, &[&zd, &dg])?;
                    let rows = if d.len() == 2 { d.pop() } else { None };
                    let mut grads = vec![d.pop()];
                    if let Some(rows) = rows {
                        let op = TableGrad { routing: &routing, idx: &idx };
                        grads.push(if of_choices { Some(rows) } else { run(&op, &[&rows])?.pop() });
                    }
                    Ok(grads)
                })
            }
        });
    }
    Selection::new(idx, gates, units, sizes(z).2, block)
}
