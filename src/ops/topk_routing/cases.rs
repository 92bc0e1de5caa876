//! Cases: every score, condition and layout, ties, and many units.

use super::{Condition, Routing, Score, Table, first_choices, route, route_rows};
use crate::engine::{Case, Computation, Operand, Timed, TimedSizes};
use crate::routing::Units;
use crate::{Device, Result};

pub(super) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let condition = |choice, gated_input| Some(Condition { weight: 0.7, choice, gated_input });
    let sided = |k| Routing { sides: 2, gated: true, gate_scale: 1.5, ..Routing::new(k) };
    let routings = [
        ("softmax", Routing { gated: true, ..Routing::new(2) }),
        ("ungated", Routing::new(3)),
        ("sigmoid", Routing { score: Score::Sigmoid, gated: true, ..Routing::new(3) }),
        ("magnitude", Routing { score: Score::Magnitude, ..Routing::new(3) }),
        ("ifs", sided(3)),
        ("cfs", Routing { condition: condition(false, false), ..sided(3) }),
        ("cfs gated input", Routing { condition: condition(false, true), ..sided(2) }),
        ("cfs choice", Routing { condition: condition(true, false), ..sided(3) }),
        ("cfs ungated", Routing { condition: condition(false, false), gated: false, ..sided(2) }),
    ];
    for (name, routing) in routings {
        for (g, l, e) in [(1, 1, 3), (5, 2, 4), (3, 1, 70), (0, 1, 3)] {
            for variant in ["wide", "lane"] {
                let routing = Routing { variant: Some(variant), ..routing.clone() };
                all.push(case(name, routing.clone(), (g, l, e), false));
                if routing.condition.is_some() && g > 0 {
                    all.push(case(name, routing, (g, l, e), true));
                }
            }
        }
    }
    all.push(
        case("70 000 tokens", Routing { gated: true, ..Routing::new(2) }, (70_000, 1, 4), false)
            .no_gradcheck(),
    );
    // Equal logits: the lowest indices, in order.
    let ties =
        Operand::values(&[2, 1, 1, 5], vec![1.0, 2.0, 2.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]).frozen();
    for variant in ["wide", "lane"] {
        all.push(Case::new(format!("ties {variant}"), vec![ties.clone()], move |x| {
            let routing = Routing { variant: Some(variant), ..Routing::new(4) };
            Ok(vec![route(&x[0], None, None, None, &routing, &Units::tokens(2), 1)?.idx().clone()])
        }));
    }
    for (score, rows, l, e) in [
        (Score::Logits, 7, 1, 5),
        (Score::Sigmoid, 7, 2, 9),
        (Score::Sigmoid, 0, 1, 4),
        (Score::Logits, 70, 1, 40),
    ] {
        for variant in ["wide", "lane"] {
            let routing =
                Routing { score, gated: true, gate_scale: 1.5, variant: Some(variant), ..Routing::new(3) };
            all.push(of_rows(routing, (rows, l, e)));
        }
    }
    // What comes before a table of choices: both sides without the condition.
    for (g, l, e) in [(5, 2, 4), (3, 1, 70)] {
        let routing = Routing { condition: condition(false, true), ..sided(2) };
        let z = Operand::normal("z", &[g, l, 2, e]).times(2.0).frozen();
        let first = Case::new(format!("first choices {g}x{l}x{e}"), vec![z], move |x| {
            Ok(vec![first_choices(&x[0], &routing)?])
        });
        all.push(first.cost(g * l * e * 4, 8 * g * l * e));
    }
    all
}

/// With a condition for every factor, or (`rows`) for the choices of A alone.
fn case(name: &str, routing: Routing, (g, l, e): (usize, usize, usize), rows: bool) -> Case {
    let r = &routing;
    let mut inputs = vec![Operand::normal("z", &[g, l, r.sides, e]).times(2.0)];
    if !r.gated {
        inputs[0] = inputs[0].clone().frozen();
    }
    if r.score != Score::Logits {
        inputs.push(Operand::normal("bias", &[l, e]).times(0.02).frozen());
    }
    if r.condition.is_some() {
        let dims = if rows { [l, g, r.k, e] } else { [l, e, e, r.table_slots()] };
        let table = Operand::normal("table", &dims);
        inputs.push(if r.gated { table } else { table.frozen() });
    }
    let label =
        format!("{name}{} {} {g}x{l}x{e}", if rows { " rows" } else { "" }, r.variant.unwrap_or("chosen"));
    let biased = r.score != Score::Logits;
    let conditioned = r.condition.is_some();
    Case::new(label, inputs, move |x| {
        let bias = biased.then(|| &x[1]);
        let table = conditioned.then(|| if rows { Table::Choices(&x[1]) } else { Table::Factors(&x[1]) });
        let s = route(&x[0], bias, table, None, &routing, &Units::tokens(g), 1)?;
        let mut out = vec![s.idx().clone()];
        out.extend(s.gates().cloned());
        Ok(out)
    })
    .sums(e)
    .cost(g * l * e * 8, 4 * g * l * e)
}

/// Rows of 12 values and their router.
fn of_rows(routing: Routing, (rows, l, e): (usize, usize, usize)) -> Case {
    let mut inputs = vec![Operand::normal("x", &[rows, 12]), Operand::normal("router", &[l * e, 12])];
    let biased = routing.score != Score::Logits;
    if biased {
        inputs.push(Operand::normal("bias", &[l, e]).times(0.02).frozen());
    }
    let label = format!("rows {:?} {} {rows}x{l}x{e}", routing.score, routing.variant.unwrap_or("chosen"));
    Case::new(label, inputs, move |x| {
        let s = route_rows(&x[0], &x[1], l, biased.then(|| &x[2]), None, &routing, 1)?;
        let mut out = vec![s.idx().clone()];
        out.extend(s.gates().cloned());
        Ok(out)
    })
    .sums(12 + rows)
    .cost(rows * l * e * 24, 4 * (rows * (12 + 2 * l * e) + 12 * l * e))
}

pub(super) fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [g, e, k] = [sizes.pick(65, 2048), 64, 8];
    let make = move |_: &Device| -> Result<Computation> {
        let routing = Routing { gated: true, ..Routing::new(k) };
        Ok(Box::new(move |x| {
            let s = route(&x[0], None, None, None, &routing, &Units::tokens(g), 1)?;
            Ok([Some(s.idx().clone()), s.gates().cloned()].into_iter().flatten().collect())
        }))
    };
    let inputs = vec![Operand::normal("z", &[g, 1, 1, e])];
    vec![Timed::new(format!("{k} of {e}, {g} units"), inputs, (8 * g * e, 4 * g * e), make).sums(e)]
}
