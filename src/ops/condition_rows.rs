//! What the chosen factors of A say for every factor of B: `C[l,g,k,e] = a[l,I[l,g,k]] . w[l,e,s]`.
//!
//! The rows of the condition's table that the instances of a batch need, where these are fewer than the factors of the
//! pool; slot `s = min(k, S-1)`. Shen et al. 2024 (ACL, long.38), conditional factor selection.

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::cpu::tile::{Tile, columns_in_parallel};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Operands, Timed, TimedSizes, operands, run1};
use crate::rng::Stream;
use crate::routing::sample::picks;
use crate::simd::{add_rows, all_dots, vectorised};
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

use crate::engine::launch::{Kernel, binds};

pub(super) static SPEC: OpSpec = OpSpec {
    name: "condition_rows",
    formula: "C[l,g,k,e] = a[l,I[l,g,k]] . w[l,e,min(k,S-1)]",
    shaders: &[&SHADER],
    cases,
    timed,
};

const NAME: &str = "condition_rows";
const WG: u32 = 64;
/// The array of the sum is counted for all entries: they share one module.
static VARIANTS: &[Variant] = &[Variant {
    name: "wg64",
    consts: &[("WG", WG)],
    parts: &[parts::GRID, parts::SUM],
    backends: PORTABLE,
    workgroup_bytes: 4 * WG,
}];

params! {
    struct Params { linears: u32, sides: u32, units: u32, k: u32, e: u32, slots: u32, d: u32 }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/condition_rows.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "forward", variants: VARIANTS },
        Entry { name: "grad_a", variants: VARIANTS },
        Entry { name: "grad_w", variants: VARIANTS },
    ],
};

/// Sizes that all passes share.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    linears: usize,
    sides: usize,
    units: usize,
    k: usize,
    e: usize,
    slots: usize,
    d: usize,
}

/// Where a choice of A stands: row of `a`, and slot.
#[derive(Clone, Copy)]
struct Chosen<'a> {
    idx: &'a [u32],
    sizes: Sizes,
}

impl Chosen<'_> {
    /// Row of `a` of choice `j` (unit and k) of a linear.
    fn row(&self, l: usize, j: usize) -> usize {
        let s = &self.sizes;
        l * s.e + self.idx[l * s.sides * s.units * s.k + j] as usize
    }
    /// Row of `w` of factor `e` and choice `j`.
    fn col(&self, l: usize, e: usize, j: usize) -> usize {
        let s = &self.sizes;
        (l * s.e + e) * s.slots + (j % s.k).min(s.slots - 1)
    }
    /// The choices of every slot.
    fn of_slots(&self) -> Vec<Vec<usize>> {
        let first = self.col(0, 0, 0);
        let of = |slot: usize| (0..self.count()).filter(|&j| self.col(0, 0, j) == first + slot).collect();
        (0..self.sizes.slots).map(of).collect()
    }
    /// Choices per linear.
    fn count(&self) -> usize {
        self.sizes.units * self.sizes.k
    }
}

/// `(a, w, idx) -> c`
struct Forward(Sizes);
/// `(dc, w, idx) -> da`
struct GradA(Sizes);
/// `(dc, a, idx) -> dw`
struct GradW(Sizes);

vectorised! {
    /// Products of the rows of `w` of some factors, from `first` (counted over all linears) on, with the chosen
    /// factors: `[factors, count]`.
    fn products(simd: _, a: &[f32], w: &[f32], chosen: Chosen<'_>, first: usize, out: &mut [f32]) {
        let s = chosen.sizes;
        let n = chosen.count();
        let count = out.len() / n.max(1);
        for (slot, choices) in chosen.of_slots().iter().enumerate() {
            let mut at = first;
            while at < first + count {
                // Up to the end of a linear.
                let l = at / s.e;
                let end = (first + count).min((at / s.e + 1) * s.e);
                let factors: Vec<&[f32]> = choices.iter().map(|&j| &a[chosen.row(l, j) * s.d..][..s.d]).collect();
                let rows: Vec<&[f32]> = (at..end).map(|e| &w[(e * s.slots + slot) * s.d..][..s.d]).collect();
                all_dots(simd, &factors, &rows, |i, e, sum| out[(at - first + e) * n + choices[i]] = sum);
                at = end;
            }
        }
    }
}

vectorised! {
    /// Columns of the gradient of `a`.
    fn sums_of_w(simd: _, dc: &[f32], w: &[f32], chosen: Chosen<'_>, tile: &mut Tile<'_>) {
        let s = chosen.sizes;
        let cols = tile.cols();
        tile.rows().for_each(|i| tile.row(i).fill(0.0));
        for l in 0..s.linears {
            for j in 0..chosen.count() {
                let dc = &dc[(l * chosen.count() + j) * s.e..][..s.e];
                let rows: Vec<&[f32]> = (0..s.e).map(|e| &w[chosen.col(l, e, j) * s.d..][cols.clone()]).collect();
                add_rows(simd, tile.row(chosen.row(l, j)), dc, &rows);
            }
        }
    }
}

vectorised! {
    /// Columns of the gradient of `w`.
    fn sums_of_a(simd: _, dc: &[f32], a: &[f32], chosen: Chosen<'_>, first: usize, out: &mut [f32]) {
        let s = chosen.sizes;
        let n = chosen.count();
        let slots = chosen.of_slots();
        let mut factors = Vec::with_capacity(n);
        let mut of = Vec::with_capacity(n);
        for (row, out) in (first..).zip(out.chunks_mut(s.d.max(1))) {
            let l = row / (s.e * s.slots);
            let e = row / s.slots % s.e;
            factors.clear();
            of.clear();
            for &j in &slots[row % s.slots] {
                factors.push(&a[chosen.row(l, j) * s.d..][..s.d]);
                of.push(dc[(l * n + j) * s.e + e]);
            }
            out.fill(0.0);
            add_rows(simd, out, &of, &factors);
        }
    }
}

/// Rows of a task that reads or writes this many values of each.
fn rows_of(d: usize) -> usize {
    (131_072 / d.max(1)).max(1)
}

fn launch<'a>(
    gpu: &Gpu,
    entry: &'static str,
    s: &Sizes,
    x: &impl Operands<'a>,
    y: &'a [Tensor],
    groups: usize,
) -> Result<()> {
    let params = Params {
        linears: s.linears as u32,
        sides: s.sides as u32,
        units: s.units as u32,
        k: s.k as u32,
        e: s.e as u32,
        slots: s.slots as u32,
        d: s.d as u32,
    };
    let kernel = Kernel { shader: &SHADER, entry, variant: &VARIANTS[0] };
    kernel.run(gpu, &binds(x, y), &params, groups, 2 * s.linears * s.units * s.k * s.e * s.d)
}

operands! {
    struct In { a, w, idx }
}

impl Op for Forward {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, _: &In<'_>) -> Result<[Meta; 1]> {
        let s = &self.0;
        Ok([Meta::f32(&[s.linears, s.units, s.k, s.e])?])
    }

    fn reference(&self, &In { a, w, idx }: &In<'_>, [y]: [&mut Host; 1]) {
        let s = &self.0;
        let chosen = Chosen { idx: idx.u32(), sizes: self.0 };
        for (i, y) in y.f64_mut().iter_mut().enumerate() {
            let l = i / (chosen.count() * s.e);
            let j = i / s.e % chosen.count();
            let e = i % s.e;
            let a = &a.f64()[chosen.row(l, j) * s.d..][..s.d];
            let w = &w.f64()[chosen.col(l, e, j) * s.d..][..s.d];
            *y = a.iter().zip(w).map(|(a, w)| a * w).sum();
        }
    }

    fn cpu(&self, &In { a, w, idx }: &In<'_>, [y]: [&mut Host; 1]) {
        let s = &self.0;
        let chosen = Chosen { idx: idx.u32(), sizes: self.0 };
        let a = a.f32();
        let w = w.f32();
        let n = chosen.count();
        if y.f32().is_empty() {
            return;
        }
        // By factors of B, whose rows are read once; then in the order of choices.
        let mut by_factor = vec![0f32; s.linears * s.e * n];
        let rows = rows_of(s.d * s.slots);
        let parts = by_factor.par_chunks_mut(rows * n);
        parts.enumerate().for_each(|(t, out)| products(a, w, chosen, t * rows, out));
        for (i, y) in y.f32_mut().chunks_mut(s.e).enumerate() {
            let l = i / n;
            let j = i % n;
            y.iter_mut().enumerate().for_each(|(e, y)| *y = by_factor[(l * s.e + e) * n + j]);
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch(gpu, "forward", &self.0, x, y, y[0].len())
    }
}

operands! {
    struct GradAIn { dc, w, idx }
}

impl Op for GradA {
    type In<'a> = GradAIn<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, _: &GradAIn<'_>) -> Result<[Meta; 1]> {
        Ok([Meta::f32(&[self.0.linears * self.0.e, self.0.d])?])
    }

    fn reference(&self, &GradAIn { dc, w, idx }: &GradAIn<'_>, [y]: [&mut Host; 1]) {
        let s = &self.0;
        let chosen = Chosen { idx: idx.u32(), sizes: self.0 };
        let dc = dc.f64();
        let w = w.f64();
        let da = y.f64_mut();
        da.fill(0.0);
        for (i, dc) in dc.iter().enumerate() {
            let l = i / (chosen.count() * s.e);
            let j = i / s.e % chosen.count();
            let e = i % s.e;
            let w = &w[chosen.col(l, e, j) * s.d..][..s.d];
            da[chosen.row(l, j) * s.d..].iter_mut().zip(w).for_each(|(y, w)| *y += dc * w);
        }
    }

    fn cpu(&self, &GradAIn { dc, w, idx }: &GradAIn<'_>, [y]: [&mut Host; 1]) {
        let chosen = Chosen { idx: idx.u32(), sizes: self.0 };
        let dc = dc.f32();
        let w = w.f32();
        columns_in_parallel(y.f32_mut(), self.0.d, |tile| sums_of_w(dc, w, chosen, tile));
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &GradAIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch(gpu, "grad_a", &self.0, x, y, y[0].len().div_ceil(WG as usize))
    }
}

operands! {
    struct GradWIn { dc, a, idx }
}

impl Op for GradW {
    type In<'a> = GradWIn<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, _: &GradWIn<'_>) -> Result<[Meta; 1]> {
        Ok([Meta::f32(&[self.0.linears * self.0.e * self.0.slots, self.0.d])?])
    }

    fn reference(&self, &GradWIn { dc, a, idx }: &GradWIn<'_>, [y]: [&mut Host; 1]) {
        let s = &self.0;
        let chosen = Chosen { idx: idx.u32(), sizes: self.0 };
        let dc = dc.f64();
        let a = a.f64();
        let dw = y.f64_mut();
        dw.fill(0.0);
        for (i, dc) in dc.iter().enumerate() {
            let l = i / (chosen.count() * s.e);
            let j = i / s.e % chosen.count();
            let e = i % s.e;
            let a = &a[chosen.row(l, j) * s.d..][..s.d];
            dw[chosen.col(l, e, j) * s.d..].iter_mut().zip(a).for_each(|(y, a)| *y += dc * a);
        }
    }

    fn cpu(&self, &GradWIn { dc, a, idx }: &GradWIn<'_>, [y]: [&mut Host; 1]) {
        let chosen = Chosen { idx: idx.u32(), sizes: self.0 };
        let dc = dc.f32();
        let a = a.f32();
        let rows = rows_of(self.0.d);
        let parts = y.f32_mut().par_chunks_mut(rows * self.0.d.max(1));
        parts.enumerate().for_each(|(t, out)| sums_of_a(dc, a, chosen, t * rows, out));
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &GradWIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch(gpu, "grad_w", &self.0, x, y, y[0].len().div_ceil(WG as usize))
    }
}

/// Rows of a condition's table: `C[l,g,k,e] = a[l,I[l,g,k]] . w[l,e,min(k,S-1)]`, `[L, G, K, E]`.
///
/// `a [L * E, D]` are factors of A (or what stands for them), `w [L * E * S, D]` the conditional router with S slots,
/// and `idx [L, P, G, K]` choices, of which side 0 is A's. Gradients go to `a` and `w`.
///
/// # Errors
/// The shapes do not fit, or on a host device an index is E or more.
pub fn condition_rows(a: &Tensor, w: &Tensor, idx: &Tensor) -> Result<Tensor> {
    a.require(NAME, DType::F32)?;
    w.require(NAME, DType::F32)?;
    idx.require(NAME, DType::U32)?;
    let shapes = || {
        let found = format!("a {}, w {}, choices {}", a.shape(), w.shape(), idx.shape());
        Error::shape(NAME, "a [L E, D], w [N L E, D], choices [L, P, G, K]", found)
    };
    let (&[rows, d], &[cols, wide], &[linears, sides, units, k]) = (a.dims(), w.dims(), idx.dims()) else {
        return Err(shapes());
    };
    if wide != d || rows == 0 || cols % rows != 0 || cols == 0 || linears == 0 || rows % linears != 0 {
        return Err(shapes());
    }
    let s = Sizes { linears, sides, units, k, e: rows / linears, slots: cols / rows, d };
    if let Some(i) = idx.first_above(s.e) {
        return Err(Error::shape(NAME, format!("choices among {} factors", s.e), format!("choice {i}")));
    }
    let c = run1(&Forward(s), In { a, w, idx })?;
    let ad = a.detach();
    let wd = w.detach();
    let idx = idx.detach();
    let need = [a.requires_grad(), w.requires_grad()];
    Ok(Node::record(NAME, &[a, w], c, move |dc| {
        let dc = &dc;
        let idx = &idx;
        let da = need[0].then(|| run1(&GradA(s), GradAIn { dc, w: &wd, idx })).transpose()?;
        let dw = need[1].then(|| run1(&GradW(s), GradWIn { dc, a: &ad, idx })).transpose()?;
        Ok(vec![da, dw])
    }))
}

fn cases() -> Vec<Case> {
    let case = |[linears, sides, units, k]: [usize; 4], e: usize, slots: usize, d: usize| {
        let label = format!("{linears}x{sides}x{units}x{k} of {e}, slots {slots}, d {d}");
        let bits = Stream::new(3).named(&label);
        let idx = (0..(linears * sides * units * k) as u32).map(|i| bits.bits(i) % e as u32).collect();
        let inputs = vec![
            Operand::normal("a", &[linears * e, d]),
            Operand::normal("w", &[linears * e * slots, d]),
            Operand::indices(&[linears, sides, units, k], idx),
        ];
        Case::new(label, inputs, |x| Ok(vec![condition_rows(&x[0], &x[1], &x[2])?]))
            .sums(d.max(units * k * e))
            .cost(2 * linears * units * k * e * d, 4 * linears * e * (1 + slots) * d)
    };
    vec![
        case([1, 2, 1, 1], 1, 1, 1),
        case([1, 2, 2, 3], 5, 3, 7),
        case([2, 2, 3, 2], 6, 2, 18),
        case([2, 1, 2, 3], 4, 1, 9),
        case([1, 2, 3, 2], 70, 2, 1),
        case([1, 2, 0, 2], 3, 2, 4),
        case([1, 2, 4, 4], 300, 4, 130).no_gradcheck(),
    ]
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [e, d, k] = sizes.pick([9, 33, 2], [1024, 1024, 4]);
    let idx = Operand::indices(&[1, 2, 4, k], picks(8, k, e));
    let inputs = vec![Operand::normal("a", &[e, d]), Operand::normal("w", &[e * k, d]), idx];
    let flops = 8 * k * e * d;
    let bytes = 4 * e * k * d;
    let rows = Timed::plain(format!("4x{k} of {e}, d {d}"), inputs, (flops, bytes), |x| {
        condition_rows(&x[0], &x[1], &x[2])
    });
    vec![rows.sums(d.max(4 * k * e)).backward(2 * flops, 2 * bytes)]
}
