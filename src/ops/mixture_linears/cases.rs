//! Cases of the whole operator, which are those of the ops that it consists of too.

use super::mixture_linears;
use crate::engine::{Case, Computation, Operand, Timed, TimedSizes};
use crate::rng::Stream;
use crate::routing::{Dropout, Selection, Units, sample};
use crate::weight::sample as weights;
use crate::{Device, Format, Linear, Result, Tensor, Weight};

/// Shapes of a case: rows, d, outputs of the linears, factors, choices, block.
struct Setup {
    label: &'static str,
    starts: &'static [usize],
    d: usize,
    outs: &'static [usize],
    factors: usize,
    k: usize,
    block: usize,
    sides: usize,
    gated: bool,
    /// Every row takes all factors, times gates of its own.
    dense: bool,
    /// A has k rows, which every unit takes in their order.
    one_a: bool,
    dropout: f32,
}

impl Setup {
    fn case(&self) -> Case {
        let Setup { label, starts, d, outs, factors, k, block, sides, gated, dense, one_a, dropout } = *self;
        let l = outs.len();
        let rows = *starts.last().unwrap_or(&0);
        let tokens = starts.len() == rows + 1;
        let units = starts.len() - 1;
        let rows_of_a = if one_a { k } else { factors * block };
        let mut inputs = vec![Operand::normal("x", &[rows, d]), Operand::normal("a", &[l * rows_of_a, d])];
        inputs.extend(outs.iter().map(|&o| Operand::normal("b", &[factors * block, o])));
        if gated {
            inputs.push(Operand::normal("gates", &[l, units, k]));
        } else if dense {
            inputs.push(Operand::normal("gates", &[rows, l, factors]));
        }
        // Distinct choices for every unit: k of a rotated list.
        let pick = Stream::new(3).named(label);
        let idx: Vec<u32> = (0..l * sides * units)
            .flat_map(|g| {
                let start = pick.bits(g as u32) as usize;
                let of_a = one_a && g / units.max(1) % sides == 0;
                (0..k).map(move |i| if of_a { i as u32 } else { ((start + i * 7) % factors) as u32 })
            })
            .collect();
        let weights: Vec<Vec<f32>> = outs
            .iter()
            .map(|&o| Stream::new(4).fork(o as u64).normal_vec(o * d, (d as f32).powf(-0.5)))
            .collect();
        let run = move |x: &[Tensor]| {
            let device: &Device = x[0].device();
            let units =
                if tokens { Units::tokens(rows) } else { Units::ranges(device, starts, &vec![1.0; rows])? };
            let idx = Tensor::from_u32(device, &[l, sides, units.count(), k], &idx)?;
            let gates = gated.then(|| x[2 + l].clone());
            let selection = if dense {
                Selection::dense(x[2 + l].clone(), None, &units, block)?
            } else {
                Selection::new(idx, gates, &units, factors, block)?
            };
            let selection = if one_a { selection.with_rows_of_a(k)? } else { selection };
            let linears = weights
                .iter()
                .zip(outs)
                .map(|(w, &o)| {
                    let weight = Weight::new(device, o, d, w, Format::F32)?;
                    Ok(Linear { weight, bias: Some(Tensor::full(device, &[o], 0.5)?) })
                })
                .collect::<Result<Vec<_>>>()?;
            let drop = (dropout > 0.0).then_some(Dropout { stream: Stream::new(8), p: dropout });
            mixture_linears(&x[0], &linears, &x[1], &x[2..2 + l], &selection, 0.5, drop)
        };
        let outputs: usize = outs.iter().sum();
        Case::new(label, inputs, run).sums(d.max(outputs) + rows).cost(
            2 * rows * (d * outputs + l * k * block * d + k * block * outputs),
            4 * (rows * (d + outputs) + d * outputs),
        )
    }
}

/// The bounds of so many units of one row each, at most 66 000.
fn tokens(rows: usize) -> &'static [usize] {
    const MOST: usize = 66_000;
    static BOUNDS: [usize; MOST + 1] = {
        let mut v = [0; MOST + 1];
        let mut i = 0;
        while i <= MOST {
            v[i] = i;
            i += 1;
        }
        v
    };
    &BOUNDS[..=rows]
}

const PLAIN: Setup = Setup {
    label: "tokens",
    starts: &[0, 1, 2, 3, 4, 5],
    d: 12,
    outs: &[9],
    factors: 5,
    k: 3,
    block: 1,
    sides: 2,
    gated: false,
    dense: false,
    one_a: false,
    dropout: 0.0,
};

/// All of the pool for every row.
const DENSE: Setup = Setup { label: "dense", dense: true, k: 5, block: 2, sides: 1, ..PLAIN };

/// Cases that look at the shrink: odd widths, several linears, dropout.
fn shrink_cases() -> Vec<Case> {
    vec![
        PLAIN.case(),
        Setup { label: "one value", starts: &[0, 1], d: 1, outs: &[1], factors: 1, k: 1, ..PLAIN }.case(),
        Setup { label: "no rows", starts: &[0], ..PLAIN }.case(),
        Setup { label: "units", starts: &[0, 4, 4, 7], d: 66, ..PLAIN }.case(),
        Setup { label: "units dropout", starts: &[0, 4, 7], d: 21, dropout: 0.3, ..PLAIN }.case(),
        Setup { label: "three linears", starts: &[0, 3, 7], outs: &[6, 4, 4], ..PLAIN }.case(),
    ]
}

/// Cases that look at the segmented sums: blocks, long segments, many factors.
fn scatter_cases() -> Vec<Case> {
    vec![
        Setup { label: "blocks", block: 2, k: 2, sides: 1, ..PLAIN }.case(),
        Setup { label: "one A", starts: &[0, 3, 7], outs: &[6, 4], one_a: true, ..PLAIN }.case(),
        Setup { label: "one A of vectors", starts: &[0, 3, 7], outs: &[8, 4], k: 4, one_a: true, ..PLAIN }
            .case(),
        Setup { label: "one factor", starts: &[0, 130], factors: 1, k: 1, ..PLAIN }.case(),
        Setup { label: "many factors", starts: &[0, 2, 5], factors: 300, k: 8, ..PLAIN }
            .case()
            .no_gradcheck(),
        Setup { label: "blocks of units", starts: &[0, 2, 5], block: 3, k: 2, outs: &[7, 5], ..PLAIN }.case(),
    ]
}

/// Cases with gates.
fn gated_cases() -> Vec<Case> {
    vec![
        Setup { label: "gated tokens", gated: true, ..PLAIN }.case(),
        Setup { label: "gated units", starts: &[0, 70, 75], gated: true, ..PLAIN }.case(),
        Setup { label: "gated blocks", gated: true, block: 2, k: 2, sides: 1, outs: &[6, 5], ..PLAIN }.case(),
        Setup {
            label: "gated dropout of vectors",
            starts: &[0, 3, 7],
            gated: true,
            dropout: 0.5,
            k: 4,
            outs: &[8, 4],
            ..PLAIN
        }
        .case(),
        Setup {
            label: "gated dropout",
            starts: &[0, 3, 7],
            gated: true,
            dropout: 0.5,
            outs: &[6, 5],
            ..PLAIN
        }
        .case(),
    ]
}

/// Dense selections: more rows than one block of a product has, several linears, units, dropout.
fn dense_cases() -> Vec<Case> {
    let outs = &[6, 5];
    vec![
        DENSE.case(),
        Setup { label: "dense, no rows", starts: &[0], outs, ..DENSE }.case(),
        Setup { label: "dense, one rank", starts: &[0, 1], factors: 1, k: 1, block: 1, ..DENSE }.case(),
        Setup { label: "dense units", starts: &[0, 70, 75], d: 37, outs, ..DENSE }.case(),
        Setup { label: "dense dropout", starts: &[0, 70, 131], d: 37, outs, dropout: 0.5, ..DENSE }.case(),
        Setup { label: "dense, many rows", starts: &[0, 1100], dropout: 0.5, ..DENSE }.case().no_gradcheck(),
    ]
}

/// Tokens that are grouped by the entries that they chose, with rows left over by every group.
fn group_cases() -> Vec<Case> {
    let groups = Setup {
        label: "groups of tokens",
        starts: tokens(71),
        d: 37,
        outs: &[83, 5],
        factors: 5,
        k: 2,
        block: 4,
        sides: 1,
        gated: true,
        ..PLAIN
    };
    let dropout = Setup { label: "groups of tokens, dropout", dropout: 0.5, ..groups };
    let of_eight = Setup { label: "groups of a wide entry", block: 8, k: 1, gated: false, ..groups };
    vec![groups.case(), dropout.case(), of_eight.case()]
}

pub(super) fn cases() -> Vec<Case> {
    let mut all: Vec<Case> = [shrink_cases(), scatter_cases(), gated_cases(), dense_cases(), group_cases()]
        .into_iter()
        .flatten()
        .collect();
    all.extend([
        Setup {
            label: "qkv widths",
            starts: &[0, 17, 40],
            d: 96,
            outs: &[96, 32, 32],
            factors: 16,
            k: 4,
            ..PLAIN
        }
        .case()
        .no_gradcheck(),
        Setup { label: "66 000 tokens", starts: tokens(66_000), d: 3, outs: &[2], factors: 4, k: 2, ..PLAIN }
            .case(),
    ]);
    all
}

pub(super) fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [m, d, e, k] = sizes.pick(sample::SMALL, sample::FULL);
    let mut inputs: Vec<Operand> =
        [("x", m), ("a", e), ("b", e)].map(|(name, rows)| Operand::normal(name, &[rows, d])).into();
    inputs.push(Operand::normal("gates", &[1, m, k]));
    let update = 2 * m * k * d;
    let product = 2 * m * d * d;
    let bytes = 4 * (2 * m * d + d * d + 2 * e * d);
    let make = move |device: &Device| -> Result<Computation> {
        let weight =
            Weight::from_bytes(device, [d, d], &weights(Format::F32, d, d, 2), Format::F32).build()?;
        let linears = [Linear { weight, bias: None }];
        let idx = sample::tokens(device, [m, e, k], None)?.idx().clone();
        Ok(Box::new(move |x| {
            let s = Selection::new(idx.clone(), Some(x[3].clone()), &Units::tokens(m), e, 1)?;
            mixture_linears(&x[0], &linears, &x[1], &x[2..3], &s, 0.5, None)
        }))
    };
    let whole = Timed::new(format!("{m}x{d}, {k} of {e}"), inputs, (product + 2 * update, bytes), make);
    vec![whole.backward(product + 4 * update, bytes + 8 * m * d).sums(2 * d + m)]
}
