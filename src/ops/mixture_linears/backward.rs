//! The backward pass of the operator.

use crate::device::{Gpu, Host};
use crate::engine::{Meta, Op, operands, run_in_place, run1};
use crate::ops::factor_gather::{self, FactorGather, shrink_into};
use crate::ops::factor_scatter::{self, FactorScatter, scatter};
use crate::ops::fused_ba_matmul::{self, Expand, FusedBa};
use crate::ops::gate_grad::gate_grad;
use crate::ops::gate_groups::{gate_groups, group_dots};
use crate::routing::Selection;
use crate::routing::{Dropout, Slots};
use crate::tape::Saved;
use crate::{DType, Error, Result, Shape, Tensor, Weight};
use std::ops::Range;
use std::sync::Arc;

/// What the backward pass needs of the forward pass.
pub(super) struct Backward {
    pub x: Saved,
    pub a: Tensor,
    pub b: Vec<Tensor>,
    pub weights: Vec<Weight>,
    pub selection: Selection,
    /// Products with the A factors, and the same times their gates.
    pub u: Tensor,
    pub gated: Tensor,
    /// Gates of rows `[M, L * E]`, of a dense selection.
    pub row_gates: Option<Tensor>,
    pub scale: f32,
    pub dropout: Option<Dropout>,
    /// x, a, b.., gates
    pub need: Vec<bool>,
}

impl Backward {
    pub fn run(self, dy: Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> {
        let n = self.weights.len();
        let s = &self.selection;
        let slots_a = s.slots_a();
        let need_gates = self.need.get(n + 2).copied().unwrap_or(false);
        let mut out: Vec<Option<Tensor>> = vec![None; self.need.len()];
        if self.need[0] || self.need[1] || need_gates {
            let (v, gated_v) = self.shrink_dy(&dy, &mut out[2..n + 2])?;
            if self.need[0] {
                out[0] = Some(self.dx(&dy, &gated_v)?);
            }
            if self.need[1] {
                out[1] = Some(scatter(&gated_v, &self.x.get()?, &slots_a, s, 1.0, self.dropout)?);
            }
            if need_gates {
                out[n + 2] = Some(match &self.row_gates {
                    Some(gates) => group_dots(&self.u, &v, gates.shape().last())?,
                    None => gate_grad(&self.u, &v, s)?,
                });
            }
            return Ok(out);
        }
        for (l, dy) in dy.iter().enumerate() {
            if let (Some(dy), true) = (dy, self.need[l + 2]) {
                out[l + 2] = Some(scatter(&self.gated, dy, &s.slots_b(l), s, self.scale, None)?);
            }
        }
        Ok(out)
    }

    /// `v = s dy . b_J` for all linears in one array, and the same times the gates; and `db` where it is needed.
    fn shrink_dy(&self, dy: &[Option<Tensor>], db: &mut [Option<Tensor>]) -> Result<(Tensor, Tensor)> {
        let s = &self.selection;
        let device = self.a.device();
        let gates = s.gates().map(Tensor::detach);
        let dims = [s.units().rows(), s.slots_a().all_columns()];
        // Every column is written where every output has a gradient.
        let undefined = |dims: &[usize]| Tensor::undefined(device, Shape::new(dims)?, DType::F32);
        let every = dy.iter().all(Option::is_some);
        let sums = || if every { undefined(&dims) } else { Tensor::zeros(device, &dims) };
        let mut v = sums()?;
        let mut gated = if gates.is_some() { sums()? } else { undefined(&[0])? };
        for (l, dy) in dy.iter().enumerate() {
            let Some(dy) = dy else { continue };
            let slots = s.slots_b(l);
            let b = &self.b[l];
            if !self.need[l + 2] {
                shrink_into([&mut v, &mut gated], dy, b, gates.as_ref(), &slots, self.scale)?;
                continue;
            }
            let mut sums = undefined(b.dims())?;
            let op = ExpandGrad { slots: &slots, selection: s, scale: self.scale };
            let inputs = In { dy, b, gu: &self.gated, gates: gates.as_ref() };
            run_in_place(&op, [&mut v, &mut gated, &mut sums], inputs)?;
            db[l] = Some(sums);
        }
        let gated = match &self.row_gates {
            Some(gates) => gate_groups(&v, gates)?,
            None if gates.is_some() => gated,
            None => v.clone(),
        };
        Ok((v, gated))
    }

    /// `dx = sum_l dy_l W_l + sum_k g v a_I`: the update joins the last product's epilogue.
    fn dx(&self, dy: &[Option<Tensor>], gated_v: &Tensor) -> Result<Tensor> {
        let slots = self.selection.slots_a();
        let last = dy.iter().rposition(Option::is_some).unwrap_or(0);
        let mut dx: Option<Tensor> = None;
        for (l, dy) in dy.iter().enumerate() {
            let Some(dy) = dy else { continue };
            let expand = (l == last).then_some(Expand { slots: &slots, scale: 1.0, dropout: self.dropout });
            let inputs = match expand {
                Some(_) => fused_ba_matmul::In::update(dy, gated_v, &self.a),
                None => fused_ba_matmul::In::product(dy),
            };
            let op = FusedBa::backward(&self.weights[l], expand, dx.is_some());
            match &mut dx {
                None => dx = Some(run1(&op, inputs)?),
                Some(dx) => run_in_place(&op, [dx], inputs)?,
            }
        }
        dx.ok_or_else(|| Error::Tape("mixture_linears: no output has a gradient".into()))
    }
}

/// Gradients of the expand of one linear, in one pass over `dy`: `v = s dy . b_J` (and times the gates), into the columns of
/// its slots, and `db_f = s sum over choices of f of gu dy`.
///
/// In place: `(v, [gated v,] db)`, of `(dy [M, D], b [P, D], gu [M, slots of all linears] [, gates])`.
struct ExpandGrad<'a> {
    slots: &'a Slots,
    selection: &'a Selection,
    scale: f32,
}

impl ExpandGrad<'_> {
    fn gather(&self) -> FactorGather<'_> {
        FactorGather { slots: self.slots, scale: self.scale, dropout: None, force: None }
    }
    fn scatter(&self) -> FactorScatter<'_> {
        FactorScatter {
            slots: self.slots,
            selection: self.selection,
            scale: self.scale,
            dropout: None,
            force: None,
        }
    }
}

operands! {
    struct In { dy, b, gu; gates }
}

impl<'a> In<'a> {
    fn of_shrink(&self) -> factor_gather::In<'a> {
        factor_gather::In { x: self.dy, pool: self.b, gates: self.gates }
    }
    fn of_sums(&self) -> factor_scatter::In<'a> {
        factor_scatter::In { coef: self.gu, rows: self.dy }
    }
}

impl Op<3> for ExpandGrad<'_> {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        super::NAME
    }

    fn infer(&self, x: &In<'_>) -> Result<[Meta; 3]> {
        let [v, gated] = self.gather().infer(&x.of_shrink())?;
        let [db] = self.scatter().infer(&x.of_sums())?;
        Ok([v, gated, db])
    }

    fn reference(&self, x: &In<'_>, [v, gated, db]: [&mut Host; 3]) {
        self.gather().reference(&x.of_shrink(), [v, gated]);
        self.scatter().reference(&x.of_sums(), [db]);
    }

    fn cpu(&self, x: &In<'_>, [v, gated, db]: [&mut Host; 3]) {
        if self.slots.dense || self.slots.units.is_tokens() {
            self.gather().cpu(&x.of_shrink(), [v, gated]);
            return self.scatter().cpu(&x.of_sums(), [db]);
        }
        let d = x.dy.shape().last();
        let gather = self.gather();
        let [dy, b, gu] = [x.dy, x.b, x.gu].map(|t| t.f32());
        let gates = x.gates.map(|g| g.f32());
        let before = |rows: Range<usize>, v: &mut [f32], gated: &mut [f32]| {
            gather.rows([dy, b], gates, d, rows.start, [v, gated]);
        };
        let beside = [v.f32_mut(), gated.f32_mut()];
        self.scatter().sums_of_units([gu, dy], d, beside, &before, db.f32_mut());
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, [v, gated, db]: &[Tensor; 3]) -> Result<()> {
        self.gather().gpu(gpu, &x.of_shrink(), &[v.detach(), gated.detach()])?;
        self.scatter().gpu(gpu, &x.of_sums(), &[db.detach()])
    }
}
