//! How often each factor was chosen, and the balancing bias that this moves: no gradients, no readback.

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Timed, TimedSizes, operands, run_in_place, run1};
use crate::routing::sample::picks;
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

use crate::device::Bind;
use crate::engine::launch::{Kernel, binds};

pub(super) static SPEC: OpSpec = OpSpec {
    name: "routing_load",
    formula: "load[e] = weighted count of e; bias += rate sign(mean load - load)",
    shaders: &[&SHADER],
    cases,
    timed,
};

const NAME: &str = "routing_load";
const WG: u32 = 64;
const PARTS: &[&str] = &[parts::GRID];
const fn variant(name: &'static str, consts: &'static [(&'static str, u32)]) -> Variant {
    Variant { name, consts, parts: PARTS, backends: PORTABLE, workgroup_bytes: 0 }
}
static VARIANTS: &[Variant] =
    &[variant("plain", &[("WG", WG), ("WEIGHTED", 0)]), variant("weighted", &[("WG", WG), ("WEIGHTED", 1)])];

params! {
    struct Params { linears: u32, sides: u32, units: u32, k: u32, e: u32, rate: f32 }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/routing_load.wgsl"),
    params: Params::FIELDS,
    entries: &[Entry { name: "count", variants: VARIANTS }, Entry { name: "balance", variants: VARIANTS }],
};

/// `(idx [L, P, G, K] [, weight [G]]) -> load [L, E]`, by side A.
struct Count {
    factors: usize,
}

/// In place: `(bias [L, E]; load [L, E])`.
struct Balance {
    rate: f32,
}

operands! {
    struct In { idx; weight }
}

impl Op for Count {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, &In { idx, weight }: &In<'_>) -> Result<[Meta; 1]> {
        idx.require(NAME, DType::U32)?;
        let [l, _, g, _] = *idx.dims() else {
            return Err(Error::shape(NAME, "choices [L, P, G, K]", idx.shape()));
        };
        if let Some(w) = weight
            && (w.dtype() != DType::F32 || w.len() != g)
        {
            return Err(Error::shape(NAME, format!("weights of {g} units"), w.shape()));
        }
        Ok([Meta::f32(&[l, self.factors])?])
    }

    fn reference(&self, &In { idx, weight }: &In<'_>, [y]: [&mut Host; 1]) {
        let [_, p, g, k] = *idx.dims() else { unreachable!("checked by infer") };
        let y = y.f64_mut();
        y.fill(0.0);
        for (i, &e) in idx.u32().iter().enumerate().filter(|(i, _)| i / (g * k) % p == 0) {
            y[i / (p * g * k) * self.factors + e as usize] += weight.map_or(1.0, |w| w.f64()[i / k % g]);
        }
    }

    fn cpu(&self, &In { idx, weight }: &In<'_>, [y]: [&mut Host; 1]) {
        let [_, p, g, k] = *idx.dims() else { unreachable!("checked by infer") };
        let idx = idx.u32();
        let weight = weight.map(|w| w.f32());
        y.f32_mut().par_chunks_mut(self.factors.max(1)).enumerate().for_each(|(l, y)| {
            y.fill(0.0);
            for (i, &e) in idx[l * p * g * k..][..g * k].iter().enumerate() {
                y[e as usize] += weight.map_or(1.0, |w| w[i / k]);
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let [l, p, g, k] = *x.idx.dims() else { unreachable!("checked by infer") };
        let weight = x.weight.map(|w| w.buffer());
        let params = Params {
            linears: l as u32,
            sides: p as u32,
            units: g as u32,
            k: k as u32,
            e: self.factors as u32,
            rate: 0.0,
        };
        let variant = &VARIANTS[usize::from(weight.is_some())];
        let bind =
            [Bind::Read(x.idx.buffer()), Bind::or_unused(weight, x.idx.buffer()), Bind::Write(y[0].buffer())];
        launch(gpu, "count", variant, &bind, &params)
    }
}

impl Balance {
    fn step(&self, bias: f64, load: f64, mean: f64) -> f64 {
        let d = mean - load;
        bias + self.rate as f64 * if d == 0.0 { 0.0 } else { d.signum() }
    }
}

operands! {
    struct BalanceIn { load }
}

impl Op for Balance {
    type In<'a> = BalanceIn<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, &BalanceIn { load }: &BalanceIn<'_>) -> Result<[Meta; 1]> {
        load.require(NAME, DType::F32)?;
        Ok([Meta::like(load)])
    }

    fn reference(&self, &BalanceIn { load }: &BalanceIn<'_>, [y]: [&mut Host; 1]) {
        let e = load.shape().last().max(1);
        for (bias, load) in y.f64_mut().chunks_mut(e).zip(load.f64().chunks(e)) {
            let mean = load.iter().sum::<f64>() / e as f64;
            bias.iter_mut().zip(load).for_each(|(b, l)| *b = self.step(*b, *l, mean));
        }
    }

    fn cpu(&self, &BalanceIn { load }: &BalanceIn<'_>, [y]: [&mut Host; 1]) {
        let e = load.shape().last().max(1);
        for (bias, load) in y.f32_mut().chunks_mut(e).zip(load.f32().chunks(e)) {
            let mean = load.iter().map(|&v| v as f64).sum::<f64>() / e as f64;
            bias.iter_mut().zip(load).for_each(|(b, l)| *b = self.step(*b as f64, *l as f64, mean) as f32);
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &BalanceIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        let linears = x.load.shape().rows() as u32;
        let e = x.load.shape().last() as u32;
        let params = Params { linears, e, rate: self.rate, ..Params::default() };
        launch(gpu, "balance", &VARIANTS[0], &binds(x, y), &params)
    }
}

fn launch(
    gpu: &Gpu,
    entry: &'static str,
    variant: &'static Variant,
    bind: &[Bind<'_>],
    params: &Params,
) -> Result<()> {
    let sums = (params.linears * params.e) as usize;
    let groups = sums.div_ceil(WG as usize);
    let flops = sums * (params.units * params.k).max(params.e) as usize;
    Kernel { shader: &SHADER, entry, variant }.run(gpu, bind, params, groups, flops)
}

/// How often side A chose each of `factors`: `idx [L, P, G, K] -> [L, E]`, units weighted by `weight [G]`.
pub(crate) fn routing_load(idx: &Tensor, factors: usize, weight: Option<&Tensor>) -> Result<Tensor> {
    run1(&Count { factors }, In { idx, weight })
}

/// `bias += rate * sign(mean(load) - load)`, per linear: factors that are chosen too rarely become likelier.
pub(crate) fn balance(bias: &mut Tensor, load: &Tensor, rate: f32) -> Result<()> {
    run_in_place(&Balance { rate }, [bias], BalanceIn { load })
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (l, p, g, k, e) in [(1, 1, 0, 2, 3), (1, 1, 1, 1, 1), (2, 2, 9, 2, 5), (1, 1, 40_000, 2, 70)] {
        let idx: Vec<u32> = (0..l * p * g * k).map(|i| ((i * 5 + i / 7) % e) as u32).collect();
        let inputs = vec![
            Operand::indices(&[l, p, g, k], idx),
            Operand::values(&[g], (0..g).map(|i| (i % 3) as f32).collect()).frozen(),
            Operand::normal("bias", &[l, e]).frozen(),
        ];
        all.push(Case::new(format!("{l}x{p}x{g}x{k} of {e}"), inputs, move |x| {
            let load = routing_load(&x[0], e, None)?;
            let weighted = routing_load(&x[0], e, Some(&x[1]))?;
            let mut bias = x[2].copy()?;
            balance(&mut bias, &load, 1e-2)?;
            Ok(vec![load, weighted, bias])
        }));
    }
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [g, k, e] = [sizes.pick(65, 4096), 8, 64];
    let inputs = vec![Operand::indices(&[1, 1, g, k], picks(g, k, e))];
    vec![Timed::plain(format!("{g}x{k} of {e}"), inputs, (g * k, 4 * g * k), |x| {
        routing_load(&x[0], 64, None)
    })]
}
