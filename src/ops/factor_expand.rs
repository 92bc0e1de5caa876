//! The expand of a mixture apart from a product, and the differentiable shrink: for experts inside a block, whose
//! low-rank products do not sit on one linear each.

use super::factor_gather::shrink;
use super::factor_scatter::scatter;
use super::fused_ba_matmul::Expand;
use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Operands, Timed, TimedSizes, operands, run_in_place};
use crate::routing::Units;
use crate::routing::{Selection, sample};
use crate::tape::Node;
use crate::{DType, Error, Result, Shape, Tensor};
use std::sync::Arc;

use crate::device::Bind;
use crate::engine::launch::{Kernel, binds};

pub(super) static SPEC: OpSpec = OpSpec {
    name: "factor_expand",
    formula: "y[m] += s sum_k u[m,k] b_{J[m,k]}",
    shaders: &[&SHADER],
    cases,
    timed,
};

const NAME: &str = "factor_expand";
const WG: u32 = 64;
const PARTS: &[&str] = &[parts::GRID, parts::SLOTS];
const fn variant(name: &'static str, consts: &'static [(&'static str, u32)]) -> Variant {
    Variant { name, consts, parts: PARTS, backends: PORTABLE, workgroup_bytes: 0 }
}
static VARIANTS: &[Variant] =
    &[variant("token", &[("WG", WG), ("UNITS", 0)]), variant("unit", &[("WG", WG), ("UNITS", 1)])];

params! {
    struct Params {
        rows: u32, n: u32, slots: u32, stride: u32, first: u32, scale: f32, s_base: u32, s_step: u32,
        s_k: u32, s_block: u32, s_pool_rows: u32,
    }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/factor_expand.wgsl"),
    params: Params::FIELDS,
    entries: &[Entry { name: "add", variants: VARIANTS }],
};

/// In place: `(y [M, N]; u [M, slots of all linears], pool [P, N])`.
struct Add<'a> {
    expand: Expand<'a>,
    /// Shape of `y`.
    to: Shape,
}

operands! {
    struct In { u, pool }
}

impl Op for Add<'_> {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &In<'_>) -> Result<[Meta; 1]> {
        x.require(NAME, DType::F32)?;
        let &In { u, pool } = x;
        let Add { expand: Expand { slots, .. }, to } = self;
        slots.check(NAME, to.rows(), pool)?;
        if u.dims() != [to.rows(), slots.all_columns()] || pool.shape().last() != to.last() {
            let found = format!("u {} and pool {}", u.shape(), pool.shape());
            return Err(Error::shape(NAME, format!("u and a pool for the rows of {to}"), found));
        }
        Ok([Meta { shape: to.clone(), dtype: DType::F32 }])
    }

    fn reference(&self, &In { u, pool }: &In<'_>, [y]: [&mut Host; 1]) {
        let n = pool.shape().last().max(1);
        let slots = self.expand.slots;
        let view = slots.view();
        for (m, y) in y.f64_mut().chunks_mut(n).enumerate() {
            for j in 0..slots.width() {
                let c =
                    self.expand.scale as f64 * u.f64()[m * slots.all_columns() + slots.first_column() + j];
                let factor = &pool.f64()[view.pick(m, j) * n..];
                y.iter_mut().zip(factor).for_each(|(y, b)| *y += c * b);
            }
        }
    }

    fn cpu(&self, &In { u, pool }: &In<'_>, [y]: [&mut Host; 1]) {
        self.expand.cpu(u.f32(), pool.f32(), y.f32_mut(), pool.shape().last());
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let slots = self.expand.slots;
        let rows = y[0].shape().rows();
        let n = y[0].shape().last();
        let units = slots.units.row_unit().map(|t| t.buffer());
        let mut bind = binds(&[x.u, x.pool, &slots.idx], y);
        bind.insert(3, Bind::or_unused(units, x.u.buffer()));
        let [s_base, s_step, s_k, s_block, s_pool_rows] = slots.params();
        let params = Params {
            rows: rows as u32,
            n: n as u32,
            slots: slots.width() as u32,
            stride: slots.all_columns() as u32,
            first: slots.first_column() as u32,
            scale: self.expand.scale,
            s_base,
            s_step,
            s_k,
            s_block,
            s_pool_rows,
        };
        let variant = &VARIANTS[usize::from(units.is_some())];
        let groups = (rows * n.div_ceil(4)).div_ceil(WG as usize);
        let kernel = Kernel { shader: &SHADER, entry: "add", variant };
        kernel.run(gpu, &bind, &params, groups, 2 * rows * n * slots.width())
    }
}

fn expand_into(y: &mut Tensor, u: &Tensor, pool: &Tensor, s: &Selection, scale: f32) -> Result<()> {
    let slots = s.slots_a();
    let add = Add { expand: Expand { slots: &slots, scale, dropout: None }, to: y.shape().clone() };
    run_in_place(&add, [y], In { u, pool })
}

/// `u[m,k] = pool[I[m,k]] . x[m]` on the tape, for a selection of one linear: gradients for `x` and `pool`.
pub(crate) fn shrink_by(x: &Tensor, pool: &Tensor, selection: &Selection) -> Result<Tensor> {
    let u = shrink(x, pool, None, &selection.slots_a(), 1.0, None)?.0;
    let xd = x.detach();
    let pd = pool.detach();
    let s = selection.clone();
    let need_x = x.requires_grad();
    let need_pool = pool.requires_grad();
    Ok(Node::record("shrink", &[x, pool], u, move |du| shrink_grads(&du, &xd, &pd, &s, [need_x, need_pool])))
}

/// Gradients of `x` and of `pool`, where they are needed, from that of `u[m,k] = pool[I[m,k]] . x[m]`.
pub(super) fn shrink_grads(
    du: &Tensor,
    x: &Tensor,
    pool: &Tensor,
    s: &Selection,
    need: [bool; 2],
) -> Result<Vec<Option<Tensor>>> {
    let mut out = vec![None, None];
    if need[0] {
        let mut dx = Tensor::zeros(x.device(), x.dims())?;
        expand_into(&mut dx, du, pool, s, 1.0)?;
        out[0] = Some(dx);
    }
    if need[1] {
        out[1] = Some(scatter(du, x, &s.slots_a(), s, 1.0, None)?);
    }
    Ok(out)
}

/// `base + scale * sum_k u[m,k] pool[I[m,k]]` on the tape: gradients for `base`, `u` and `pool`.
///
/// `base` is taken over: its memory is reused when no one else holds it.
pub(crate) fn expand_by(
    base: Tensor,
    u: &Tensor,
    pool: &Tensor,
    selection: &Selection,
    scale: f32,
) -> Result<Tensor> {
    let mut y = base.detach();
    let shell = Tensor { storage: u.storage.clone(), ..base };
    expand_into(&mut y, u, pool, selection, scale)?;
    let ud = u.detach();
    let pd = pool.detach();
    let s = selection.clone();
    let need = [shell.requires_grad(), u.requires_grad(), pool.requires_grad()];
    Ok(Node::record("expand", &[&shell, u, pool], y, move |dy| {
        let du = if need[1] { Some(shrink(&dy, &pd, None, &s.slots_a(), scale, None)?.0) } else { None };
        let dpool = if need[2] { Some(scatter(&ud, &dy, &s.slots_a(), &s, scale, None)?) } else { None };
        Ok(vec![need[0].then_some(dy), du, dpool])
    }))
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (rows, d, n, experts, k, block) in [
        (0, 3, 2, 2, 1, 1),
        (1, 1, 1, 1, 1, 1),
        (5, 6, 7, 4, 2, 3),
        (40, 33, 66, 3, 1, 2),
        (66_000, 1, 2, 2, 1, 1),
        (40, 66, 130, 1, 1, 32),
    ] {
        let idx: Vec<u32> = (0..rows * k).map(|i| ((i * 7 + i / 3) % experts) as u32).collect();
        let inputs = vec![
            Operand::normal("x", &[rows, d]),
            Operand::normal("a", &[experts * block, d]),
            Operand::normal("b", &[experts * block, n]),
            Operand::normal("base", &[rows, n]),
        ];
        let label = format!("{rows}x{d}x{n}, {k} of {experts} blocks of {block}");
        all.push(
            Case::new(label, inputs, move |x| {
                let idx = Tensor::from_u32(x[0].device(), &[1, 1, rows, k], &idx)?;
                let s = Selection::new(idx, None, &Units::tokens(rows), experts, block)?;
                let u = shrink_by(&x[0], &x[1], &s)?;
                Ok(vec![expand_by(x[3].clone(), &u, &x[2], &s, 0.7)?])
            })
            .sums(rows + d + n)
            .cost(2 * rows * k * block * (d + n), 4 * rows * (d + 2 * n + 2 * k * block)),
        );
    }
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [m, d, e, k] = sizes.pick(sample::SMALL, sample::FULL);
    let shapes = [("x", m), ("a", e), ("b", e), ("base", m)];
    let inputs = shapes.map(|(name, rows)| Operand::normal(name, &[rows, d])).into();
    let flops = 4 * m * k * d;
    let bytes = 8 * (m * d + e * d + m * k);
    let expand =
        Timed::new(format!("{m}x{d}, {k} of {e}"), inputs, (flops, bytes + 4 * m * d), move |device| {
            let s = sample::tokens(device, [m, e, k], None)?;
            Ok(Box::new(move |x| {
                let u = shrink_by(&x[0], &x[1], &s)?;
                // The base is taken over where nothing else holds it; here it is copied.
                Ok(vec![expand_by(x[3].clone(), &u, &x[2], &s, 0.7)?])
            }))
        });
    vec![expand.backward(2 * flops, 2 * bytes).sums(2 * d + m)]
}
