//! Top-k routing: from logits to ordered choices and gates, for all linears that read one input.
//!
//! Ordered: slot k of A is paired with slot k of B, so the order is part of the choice. Ties go to the lowest
//! index. The mathematics for one unit is in `topk_routing/math.rs`; derivation: Shen et al. 2024 (ACL, long.38),
//! checked against central differences.

mod backward;
mod cases;
mod cpu;
mod gpu;
mod math;
mod rows;
mod rules;

use self::backward::{Backward, BackwardIn, TableGrad, TableIn};
use self::cpu::OneSide;
use self::math::{Unit, Values};
pub use self::rows::route_rows;
pub use self::rules::{Condition, Routing, Score, Table};
use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::{Meta, Op, OpSpec, operands, run, run1};
use crate::routing::{Selection, Units};
use crate::tape::{Node, recording};
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "topk_routing",
    formula: "I = top-k of z_a, J = top-k of z_b | condition on I, gates = softmax over the chosen",
    shaders: &[&SHADER],
    cases: cases::cases,
    timed: cases::timed,
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

params! {
    struct Params { units: u32, linears: u32, e: u32, scale: f32, lambda: f32 }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../../shaders/topk_routing.wgsl"),
    params: Params::FIELDS,
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
        let l = i / units.max(1);
        let unit = i % units.max(1);
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

operands! {
    struct In { z }
}

impl Op<2> for Forward<'_> {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, &In { z }: &In<'_>) -> Result<[Meta; 2]> {
        let r = self.routing;
        z.require(NAME, DType::F32)?;
        let bad = |expected: String, found: String| Err(Error::shape(NAME, expected, found));
        let [g, l, sides, e] = *z.dims() else {
            return bad("logits [units, linears, sides, factors]".into(), z.shape().to_string());
        };
        if sides != r.sides || !(1..=2).contains(&sides) || r.k == 0 || r.k > e {
            return bad(format!("logits to choose {} from on {} sides", r.k, r.sides), z.shape().to_string());
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
            let expected = format!("bias, table and forced choices for logits {} and {r:?}", z.shape());
            return bad(expected, "others".into());
        }
        let needs_table = r.condition.is_some();
        let needs_bias = r.score != Score::Logits;
        if needs_table != self.extra.table.is_some()
            || needs_bias != self.extra.bias.is_some()
            || (needs_table && sides == 1)
        {
            let given = |what: bool| if what { "one" } else { "none" };
            let found = format!(
                "table: {}, bias: {}",
                given(self.extra.table.is_some()),
                given(self.extra.bias.is_some())
            );
            return bad(format!("a table and a bias exactly where the routing uses them: {r:?}"), found);
        }
        let gates = if r.gated { Meta::f32(&[l, g, r.k])? } else { Meta::f32(&[0])? };
        Ok([Meta::u32(&[l, sides, g, r.k])?, gates])
    }

    fn reference(&self, &In { z }: &In<'_>, [idx, gates]: [&mut Host; 2]) {
        let (units, _, _) = sizes(z);
        let idx = idx.u32_mut();
        let k = self.routing.k;
        let sides = self.routing.sides;
        let choices = for_units(self.routing, &self.extra, z, |l, unit, u| {
            let list = |side: usize| ((l * sides + side) * units + unit) * k;
            let forced = self.extra.forced.map(|t| {
                let of = |side: usize| &t.u32()[list(side)..][..k];
                (of(0), if sides == 2 { of(1) } else { &[][..] })
            });
            (l, unit, u.forward(forced))
        });
        for (l, unit, choice) in choices {
            let list = |side: usize| ((l * sides + side) * units + unit) * k;
            idx[list(0)..][..k].copy_from_slice(&choice.a);
            if sides == 2 {
                idx[list(1)..][..k].copy_from_slice(&choice.b);
            }
            if self.routing.gated {
                put(gates, (l * units + unit) * k, &choice.gates);
            }
        }
    }

    fn cpu(&self, x: &In<'_>, [idx, gates]: [&mut Host; 2]) {
        if self.routing.sides == 2 {
            // Two sides have few units: the specification itself, units in parallel.
            return self.reference(x, [idx, gates]);
        }
        let side = one_side(self.routing, &self.extra, x.z);
        let idx = idx.u32_mut();
        match self.extra.forced {
            Some(forced) => idx.copy_from_slice(forced.u32()),
            None => side.choose(idx),
        }
        if self.routing.gated {
            side.gates(idx, gates.f32_mut());
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 2]) -> Result<()> {
        use crate::device::Bind;
        let (units, linears, e) = sizes(x.z);
        let z = x.z.buffer();
        let scratch = gpu.alloc(if self.routing.condition.is_some() { linears * units * e } else { 1 })?;
        let bind = [
            Bind::Read(z),
            Bind::or_unused(self.extra.bias.map(|t| t.buffer()), z),
            Bind::or_unused(self.extra.table.map(|t| t.tensor().buffer()), z),
            Bind::or_unused(self.extra.forced.map(|t| t.buffer()), z),
            Bind::Write(y[0].buffer()),
            Bind::Write(y[1].buffer()),
            Bind::Write(&scratch),
        ];
        let launch =
            gpu::Launch { entry: "forward", routing: self.routing, extra: &self.extra, sparse: false };
        launch.run(gpu, x.z, &bind, linears * units)
    }
}

/// The choices `[L, SIDES, G, K]` of both sides without the condition: side 0 is what [`route`] takes for A.
///
/// # Errors
/// As [`route`].
pub fn first_choices(z: &Tensor, routing: &Routing) -> Result<Tensor> {
    let plain = Routing { gated: false, condition: None, ..routing.clone() };
    let [idx, _] = run(&Forward { routing: &plain, extra: Extra::default() }, In { z: &z.detach() })?;
    Ok(idx)
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
        t.require(NAME, DType::U32)?;
        // Kernels clamp what they read; host lanes would stop.
        if let Some(e) = t.first_above(z.shape().last()) {
            return Err(Error::shape(
                NAME,
                format!("choices among {} factors", z.shape().last()),
                format!("choice {e}"),
            ));
        }
    }
    let [idx, gates] = run(&Forward { routing, extra }, In { z })?;
    let mut gates = routing.gated.then_some(gates);
    let mut graph = vec![z];
    graph.extend(table.map(|t| t.tensor()));
    if let Some(g) = gates.take() {
        gates = Some(if !recording(&graph) {
            g
        } else {
            let routing = routing.clone();
            let idx = idx.clone();
            let zd = z.detach();
            let bias = bias.cloned();
            let of_choices = Table::of_choices(&table);
            let values = table.map(|t| t.tensor().detach());
            Node::record(NAME, &graph, g, move |dg| {
                let table =
                    values.as_ref().map(|t| if of_choices { Table::Choices(t) } else { Table::Factors(t) });
                let extra = Extra { bias: bias.as_ref(), table, forced: None };
                let op = Backward { routing: &routing, extra, idx: &idx, sparse: false };
                let [dz, rows] = run(&op, BackwardIn { z: &zd, dgates: &dg })?;
                let mut grads = vec![Some(dz)];
                if routing.condition.is_some() {
                    let op = TableGrad { routing: &routing, idx: &idx };
                    grads.push(Some(if of_choices { rows } else { run1(&op, TableIn { rows: &rows })? }));
                }
                Ok(grads)
            })
        });
    }
    Selection::new(idx, gates, units, sizes(z).2, block)
}
