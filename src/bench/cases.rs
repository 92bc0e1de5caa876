//! What is timed of every op: sizes of training, and the same computation at a small size for the check before it.
//!
//! The cases of an op's own file are for correctness: odd and small. These are the only ones that are timed.

use super::{Costs, Shape};
use crate::engine::{Case, Operand};
use crate::ops::adamw::{AdamWStep, adamw};
use crate::ops::condition_rows::condition_rows;
use crate::ops::factor_expand::{expand_by, shrink_by};
use crate::ops::factor_gather::shrink;
use crate::ops::factor_scatter::scatter;
use crate::ops::gate_grad::gate_grad;
use crate::ops::global_norm::global_norm;
use crate::ops::mixture_linears::mixture_linears;
use crate::ops::rope::Rope;
use crate::ops::routing_load::routing_load;
use crate::ops::topk_routing::{Routing, route};
use crate::routing::{Dropout, Selection, Units};
use crate::weight::sample;
use crate::{Device, Format, Linear, Result, Stream, Tensor, Weight};
use std::sync::Mutex;

/// `M x N x K` of dense products where no other shape is asked for.
pub const DEFAULT_SHAPES: [Shape<3>; 2] = [Shape([256, 1024, 1024]), Shape([512, 576, 1536])];

/// Largest side of a dense product that is checked against the reference.
const CHECKED: usize = 256;

/// A computation on inputs, made for one device.
pub(super) type Computation = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync>;
type Make = Box<dyn Fn(&Device) -> Result<Computation> + Send + Sync>;

/// One computation to be timed.
pub(super) struct Timed {
    pub shape: String,
    pub dtype: &'static str,
    pub inputs: Vec<Operand>,
    /// Weights and indices are put on the device here, apart from what is timed.
    pub make: Make,
    pub forward: Costs,
    /// None where there is no derivative, or no work in it.
    pub backward: Option<Costs>,
    /// Length of the longest sum.
    sums: usize,
}

impl Timed {
    fn new(
        shape: impl Into<String>,
        inputs: Vec<Operand>,
        (flops, bytes): (usize, usize),
        make: impl Fn(&Device) -> Result<Computation> + Send + Sync + 'static,
    ) -> Self {
        let forward = Costs { flops: flops as f64, bytes: bytes as f64 };
        let make = Box::new(make);
        Timed { shape: shape.into(), dtype: "f32", inputs, make, forward, backward: None, sums: 1 }
    }

    /// A computation that needs nothing besides its inputs.
    fn plain(
        shape: impl Into<String>,
        inputs: Vec<Operand>,
        costs: (usize, usize),
        f: fn(&[Tensor]) -> Result<Tensor>,
    ) -> Self {
        Timed::new(shape, inputs, costs, move |_| Ok(Box::new(move |x| Ok(vec![f(x)?]))))
    }

    fn backward(mut self, flops: usize, bytes: usize) -> Self {
        self.backward = Some(Costs { flops: flops as f64, bytes: bytes as f64 });
        self
    }

    fn sums(mut self, n: usize) -> Self {
        self.sums = n;
        self
    }

    /// As a case for the parity harness.
    pub fn case(self) -> Case {
        let Timed { shape, inputs, make, sums, .. } = self;
        // The harness runs a case on two devices, one after the other.
        let made: Mutex<Option<(Device, Computation)>> = Mutex::new(None);
        let run = move |x: &[Tensor]| {
            let device = x[0].device();
            let mut made = made.lock().unwrap_or_else(|e| e.into_inner());
            if made.as_ref().is_none_or(|(d, _)| !d.same(device)) {
                *made = Some((device.clone(), make(device)?));
            }
            match made.as_ref() {
                Some((_, computation)) => computation(x),
                None => Ok(Vec::new()),
            }
        };
        Case::new(shape, inputs, run).sums(sums)
    }
}

/// Makes the computation at its full size, or small.
pub(super) type Build = Box<dyn Fn(bool) -> Timed>;

/// What is timed of an op; `shapes` and `formats` are those of dense products.
pub(super) fn of(op: &str, shapes: &[Shape<3>], formats: &[Format]) -> Vec<Build> {
    let products = |f: fn(Shape<3>, Format) -> Timed, formats: &[Format]| -> Vec<Build> {
        let all = shapes.iter().flat_map(|&s| formats.iter().map(move |&t| (s, t)));
        let small = |s: Shape<3>| Shape(s.0.map(|v| v.min(CHECKED)));
        all.map(|(s, t)| -> Build { Box::new(move |less| f(if less { small(s) } else { s }, t)) }).collect()
    };
    match op {
        "matmul" => products(matmul, &[Format::F32]),
        "fused_ba_matmul" => products(linear, formats),
        _ => {
            let found = FIXED.iter().filter(|(name, _)| *name == op);
            found.map(|&(_, f)| -> Build { Box::new(f) }).collect()
        }
    }
}

type Fixed = fn(bool) -> Timed;

static FIXED: &[(&str, Fixed)] = &[
    ("attention", |less| attention(if less { 67 } else { 512 })),
    ("attention", |less| attention(if less { 450 } else { 2048 })),
    ("elementwise", |less| {
        let [r, d] = plane(less);
        let n = r * d;
        let x = vec![normal("a", r, d), normal("b", r, d)];
        Timed::plain(format!("mul {r}x{d}"), x, (n, 12 * n), |x| x[0].mul(&x[1])).backward(2 * n, 24 * n)
    }),
    ("head_loss", head_loss),
    ("reduce", |less| {
        let [r, d] = plane(less);
        let cost = (r * d, 4 * r * d);
        Timed::plain(format!("sum_last {r}x{d}"), vec![normal("x", r, d)], cost, |x| x[0].sum_last()).sums(d)
    }),
    ("rms_norm", |less| {
        let [r, d] = plane(less);
        let n = r * d;
        let x = vec![normal("x", r, d), Operand::normal("w", &[d]).frozen()];
        let norm = Timed::plain(format!("{r}x{d}"), x, (4 * n, 8 * n), |x| x[0].rms_norm(&x[1], 1e-5));
        norm.sums(d).backward(8 * n, 12 * n)
    }),
    ("pool_rows", pool_rows),
    ("condition_rows", |less| {
        let (e, d, k) = if less { (9, 33, 2) } else { (1024, 1024, 4) };
        let idx = Operand::indices(&[1, 2, 4, k], picks(8, k, e));
        let x = vec![normal("a", e, d), normal("w", e * k, d), idx];
        let cost = (8 * k * e * d, 4 * e * k * d);
        Timed::plain(format!("4x{k} of {e}, d {d}"), x, cost, |x| condition_rows(&x[0], &x[1], &x[2]))
            .sums(d.max(4 * k * e))
            .backward(2 * cost.0, 2 * cost.1)
    }),
    ("topk_routing", topk_routing),
    ("factor_gather", |less| factors(less, Part::Gather)),
    ("factor_scatter", |less| factors(less, Part::Scatter)),
    ("gate_grad", |less| factors(less, Part::Gates)),
    ("factor_expand", |less| factors(less, Part::Expand)),
    ("mixture_linears", |less| factors(less, Part::Whole)),
    ("repeat_rows", |less| {
        let [r, d] = plane(less);
        let n = r * d;
        Timed::plain(format!("{r}x{d} 2 times"), vec![normal("x", r, d)], (0, 12 * n), |x| {
            x[0].repeat_rows(2)
        })
        .backward(n, 12 * n)
    }),
    ("write_rows", |less| {
        let (t, d) = if less { (33, 192) } else { (2048, 192) };
        let x =
            vec![Operand::normal("old", &[4, t, d]).frozen(), Operand::normal("new", &[4, 1, d]).frozen()];
        // Someone else holds the rows: they are copied first.
        Timed::plain(format!("4x{t}x{d}, 1 at 9"), x, (0, 32 * (t + 1) * d), |x| {
            let mut y = x[0].clone();
            y.write_rows(9, &x[1]).map(|()| y)
        })
    }),
    ("routing_load", |less| {
        let (g, k, e) = (if less { 65 } else { 4096 }, 8, 64);
        let idx = Operand::indices(&[1, 1, g, k], picks(g, k, e));
        Timed::plain(format!("{g}x{k} of {e}"), vec![idx], (g * k, 4 * g * k), |x| {
            routing_load(&x[0], 64, None)
        })
    }),
    ("activation", |less| {
        let [r, d] = plane(less);
        let n = r * d;
        let x = vec![normal("gate", r, d), normal("up", r, d)];
        Timed::plain(format!("swiglu {r}x{d}"), x, (11 * n, 12 * n), |x| x[0].swiglu(&x[1]))
            .backward(20 * n, 20 * n)
    }),
    ("softmax", |less| {
        let [r, d] = plane(less);
        let n = r * d;
        Timed::plain(format!("{r}x{d}"), vec![normal("x", r, d)], (4 * n, 8 * n), |x| x[0].softmax())
            .sums(d)
            .backward(4 * n, 12 * n)
    }),
    ("gather_rows", |less| {
        let [r, d] = plane(less);
        let index = (0..r).map(|i| (i * 7 % r) as u32).collect();
        let x = vec![normal("table", r, d), Operand::indices(&[r], index)];
        Timed::plain(format!("{r} of {r}x{d}"), x, (0, 8 * r * d), |x| x[0].gather_rows(&x[1]))
            .backward(0, 8 * r * d)
    }),
    ("embedding", embedding),
    ("rope", |less| {
        let (s, h, d) = (if less { 33 } else { 1024 }, 32, 64);
        let n = s * h * d;
        let x = vec![Operand::normal("x", &[1, s, h, d]), Operand::indices(&[1, s], (0..s as u32).collect())];
        let make = move |device: &Device| -> Result<Computation> {
            let rope = Rope::new(device, d, s, 10_000.0)?;
            Ok(Box::new(move |x| Ok(vec![x[0].rope(&rope, &x[1])?])))
        };
        Timed::new(format!("1x{s}x{h}x{d}"), x, (3 * n, 8 * n), make).backward(3 * n, 8 * n)
    }),
    ("layer_norm", |less| {
        let [r, d] = plane(less);
        let n = r * d;
        let weight = |name| Operand::normal(name, &[d]).frozen();
        let x = vec![normal("x", r, d), weight("w"), weight("b")];
        Timed::plain(format!("{r}x{d}"), x, (7 * n, 8 * n), |x| x[0].layer_norm(&x[1], &x[2], 1e-5))
            .sums(d)
            .backward(11 * n, 12 * n)
    }),
    ("dropout", |less| {
        let [r, d] = plane(less);
        let n = r * d;
        Timed::plain(format!("{r}x{d}"), vec![normal("x", r, d)], (n, 8 * n), |x| {
            x[0].dropout(0.1, Stream::new(5))
        })
        .backward(n, 8 * n)
    }),
    ("top_k", |less| {
        let [r, d] = plane(less);
        let x = vec![normal("x", r, d).frozen()];
        Timed::plain(format!("8 of {r}x{d}"), x, (0, 4 * r * (d + 8)), |x| x[0].top_k(8))
    }),
    ("adamw", |less| {
        let [r, d] = plane(less);
        let n = r * d;
        let x = ["w", "m", "g"].map(|name| normal(name, r, d).frozen());
        let make = |_: &Device| -> Result<Computation> {
            let options = AdamWStep { step: 3, ..AdamWStep::default() };
            Ok(Box::new(move |x| {
                let (mut w, mut m, mut v) = (x[0].detach(), x[1].detach(), x[2].mul(&x[2])?);
                adamw(&mut w, &mut m, &mut v, &x[2], None, &options)?;
                Ok(vec![w, m, v])
            }))
        };
        // The operands are shared, so the step copies w and m first: that is part of the bytes.
        Timed::new(format!("{r}x{d}"), x.to_vec(), (16 * n, 52 * n), make)
    }),
    ("global_norm", |less| {
        let [r, d] = plane(less);
        let x = vec![normal("x", r, d).frozen()];
        Timed::plain(format!("{r}x{d}"), x, (2 * r * d, 4 * r * d), |x| global_norm(&[&x[0]])).sums(r * d)
    }),
];

/// Rows and columns of ops that move memory.
fn plane(less: bool) -> [usize; 2] {
    [if less { 37 } else { 2048 }, if less { 257 } else { 2048 }]
}

fn normal(name: &str, rows: usize, cols: usize) -> Operand {
    Operand::normal(name, &[rows, cols])
}

fn matmul(Shape([m, n, k]): Shape<3>, _: Format) -> Timed {
    let x = vec![normal("a", m, k), normal("b", n, k)];
    let costs = (2 * m * n * k, 4 * (m * k + n * k + m * n));
    Timed::plain(format!("NT {m}x{n}x{k}"), x, costs, |x| x[0].matmul_nt(&x[1]))
        .sums(m.max(n).max(k))
        .backward(4 * m * n * k, 4 * (2 * m * k + 2 * n * k + 2 * m * n))
}

/// A frozen linear in a storage format.
fn linear(Shape([m, n, k]): Shape<3>, format: Format) -> Timed {
    // Blocks are along K.
    let k = k.next_multiple_of(format.block_len());
    let weight = 4 * n * format.row_words(k);
    let costs = (2 * m * n * k, 4 * (m * k + m * n) + weight);
    let make = move |device: &Device| -> Result<Computation> {
        let w = Weight::from_raw(device, n, k, &sample(format, n, k, 2), format)?;
        Ok(Box::new(move |x| Ok(vec![x[0].linear(&w, None)?])))
    };
    let timed = Timed::new(format!("{m}x{n}x{k}"), vec![normal("x", m, k)], costs, make);
    Timed { dtype: format.name(), ..timed.sums(n.max(k)).backward(costs.0, costs.1) }
}

fn attention(s: usize) -> Timed {
    let (h, kv, d) = (9, 3, 64);
    let key = |name| Operand::normal(name, &[1, s, kv, d]);
    let (pairs, bytes) = (h * s * (s + 1) / 2, 8 * s * d * (h + kv));
    let x = vec![Operand::normal("q", &[1, s, h, d]), key("k"), key("v")];
    // Two products forward; backward five, with the scores computed again.
    Timed::plain(format!("1x{s}x{h}/{kv}x{d}"), x, (4 * pairs * d, bytes), |x| {
        x[0].attention(&x[1], &x[2], None, 0.125)
    })
    .sums(s * h / kv)
    .backward(10 * pairs * d, 2 * bytes)
}

fn head_loss(less: bool) -> Timed {
    let [r, d, v] = if less { [33, 64, 500] } else { [256, 576, 8192] };
    let targets = Operand::indices(&[r], (0..r).map(|i| (i * 7 % v) as u32).collect());
    let make = move |device: &Device| -> Result<Computation> {
        let values = Stream::new(3).named("head").normal_vec(v * d, 0.05);
        let w = Weight::new(device, v, d, &values, Format::F32)?;
        Ok(Box::new(move |x| Ok(vec![x[0].head_loss(&w, &x[1])?])))
    };
    // The gradient of the hidden states is made on the way.
    let costs = (4 * r * v * d, 4 * (2 * r * d + v * d));
    Timed::new(format!("{r}x{d} of {v}"), vec![normal("h", r, d), targets], costs, make).sums(r.max(d).max(v))
}

fn embedding(less: bool) -> Timed {
    let (r, v, d) = (if less { 33 } else { 2048 }, 8192, 576);
    let index = (0..r).map(|i| (i * 31 % v) as u32).collect();
    let make = move |device: &Device| -> Result<Computation> {
        let w = Weight::from_raw(device, v, d, &sample(Format::F32, v, d, 2), Format::F32)?;
        Ok(Box::new(move |x| Ok(vec![w.embedding(&x[0])?])))
    };
    Timed::new(format!("{r} of {v}x{d}"), vec![Operand::indices(&[r], index)], (0, 8 * r * d), make)
}

fn pool_rows(less: bool) -> Timed {
    let [r, d] = if less { [40, 257] } else { [2048, 2048] };
    let make = move |device: &Device| -> Result<Computation> {
        let units = Units::instances(device, 8, r / 8)?;
        Ok(Box::new(move |x| Ok(vec![x[0].pool_rows(&units)?])))
    };
    Timed::new(format!("8 units of {r}x{d}"), vec![normal("x", r, d)], (2 * r * d, 4 * r * d), make)
        .sums(r)
        .backward(r * d, 4 * r * d)
}

fn topk_routing(less: bool) -> Timed {
    let (g, e, k) = (if less { 65 } else { 2048 }, 64, 8);
    let make = move |_: &Device| -> Result<Computation> {
        let routing = Routing { gated: true, ..Routing::new(k) };
        Ok(Box::new(move |x| {
            let s = route(&x[0], None, None, None, &routing, &Units::tokens(g), 1)?;
            Ok([Some(s.idx().clone()), s.gates().cloned()].into_iter().flatten().collect())
        }))
    };
    let z = Operand::normal("z", &[g, 1, 1, e]);
    Timed::new(format!("{k} of {e}, {g} units"), vec![z], (8 * g * e, 4 * g * e), make).sums(e)
}

/// `k` different choices of `e` for each of `g` units.
fn picks(g: usize, k: usize, e: usize) -> Vec<u32> {
    let pick = Stream::new(3).named("picks");
    (0..g)
        .flat_map(|u| {
            let start = pick.bits(u as u32) as usize;
            (0..k).map(move |i| ((start % e + i * 7) % e) as u32)
        })
        .collect()
}

/// Which part of the mixture operator.
#[derive(Clone, Copy)]
enum Part {
    Gather,
    Scatter,
    Gates,
    Expand,
    Whole,
}

/// One linear `d -> d` whose tokens choose `k` of `e` factors each.
fn factors(less: bool, part: Part) -> Timed {
    let [m, d, e, k] = if less { [40, 96, 16, 4] } else { [1024, 1024, 64, 8] };
    let idx = picks(m, k, e);
    let selection = move |device: &Device, gates: Option<&Tensor>| {
        let idx = Tensor::from_u32(device, &[1, 1, m, k], &idx)?;
        Selection::new(idx, gates.cloned(), &Units::tokens(m), e, 1)
    };
    let (x, a, b) = (normal("x", m, d), normal("a", e, d), normal("b", e, d));
    let coefficients = |name| normal(name, m, k).frozen();
    let (one, read) = (2 * m * k * d, 4 * (m * d + e * d + m * k));
    let shape = format!("{m}x{d}, {k} of {e}");
    let timed = match part {
        Part::Gather => Timed::new(shape, vec![x.frozen(), a.frozen()], (one, read), move |device| {
            let s = selection(device, None)?;
            Ok(Box::new(move |x| Ok(vec![shrink(&x[0], &x[1], None, &s.slots_a(), 1.0, None)?.0])))
        }),
        Part::Scatter => Timed::new(shape, vec![x.frozen(), coefficients("u")], (one, read), move |device| {
            let s = selection(device, None)?;
            Ok(Box::new(move |x| Ok(vec![scatter(&x[1], &x[0], &s.slots_a(), &s, 1.0, None)?])))
        }),
        Part::Gates => {
            let inputs = vec![coefficients("u"), coefficients("v")];
            Timed::new(shape, inputs, (m * k, 12 * m * k), move |device| {
                let s = selection(device, None)?;
                Ok(Box::new(move |x| Ok(vec![gate_grad(&x[0], &x[1], &s)?])))
            })
        }
        Part::Expand => {
            let inputs = vec![x, a, b, normal("base", m, d)];
            Timed::new(shape, inputs, (2 * one, 2 * read + 4 * m * d), move |device| {
                let s = selection(device, None)?;
                Ok(Box::new(move |x| {
                    let u = shrink_by(&x[0], &x[1], &s)?;
                    // The base is taken over where nothing else holds it; here it is copied.
                    Ok(vec![expand_by(x[3].clone(), &u, &x[2], &s, 0.7)?])
                }))
            })
            .backward(4 * one, 4 * read)
        }
        Part::Whole => {
            let inputs = vec![x, a, b, Operand::normal("gates", &[1, m, k])];
            let (flops, bytes) = (2 * m * d * d + 2 * one, 4 * (2 * m * d + d * d + 2 * e * d));
            Timed::new(shape, inputs, (flops, bytes), move |device| {
                let weight = Weight::from_raw(device, d, d, &sample(Format::F32, d, d, 2), Format::F32)?;
                let linears = [Linear { weight, bias: None }];
                let routed = selection(device, None)?;
                let idx = routed.idx().clone();
                Ok(Box::new(move |x| {
                    let s = Selection::new(idx.clone(), Some(x[3].clone()), &Units::tokens(m), e, 1)?;
                    mixture_linears(&x[0], &linears, &x[1], &x[2..3], &s, 0.5, None::<Dropout>)
                }))
            })
            .backward(2 * m * d * d + 4 * one, bytes + 8 * m * d)
        }
    };
    timed.sums(2 * d + m)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::parity;

    #[test]
    fn every_op_is_timed_and_right_at_its_small_size() {
        let formats = [Format::F32, Format::Q4_K];
        for op in crate::ops::ALL {
            let all = of(op.name, &[Shape([33, 40, 65])], &formats);
            assert!(!all.is_empty(), "{} has no case to be timed", op.name);
            for build in all {
                let timed = build(true);
                assert!(timed.forward.bytes > 0.0, "{}", op.name);
                let found = parity(&timed.case(), &Device::cpu()).unwrap();
                assert!(found.holds(), "{}: {found}", op.name);
            }
        }
    }
}
