//! The backward pass of the operator.

use crate::device::Host;
use crate::engine::{Meta, Op, run, run_in_place};
use crate::ops::factor_gather::{FactorGather, shrink_into};
use crate::ops::factor_scatter::{FactorScatter, scatter};
use crate::ops::fused_ba_matmul::{Expand, FusedBa};
use crate::ops::gate_grad::GateGrad;
use crate::routing::Selection;
use crate::routing::{Dropout, Slots};
use crate::tape::Saved;
use crate::{DType, Error, Result, Shape, Tensor, Weight};
use std::ops::Range;

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
    pub scale: f32,
    pub dropout: Option<Dropout>,
    /// x, a, b.., gates
    pub need: Vec<bool>,
}

impl Backward {
    pub fn run(self, dy: Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> {
        let (n, s) = (self.weights.len(), &self.selection);
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
                out[n + 2] = Some(run(&GateGrad(s), &[&self.u, &v])?.swap_remove(0));
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
        let (s, device) = (&self.selection, self.a.device());
        let gates = s.gates().map(Tensor::detach);
        let dims = [s.units().rows(), s.slots_a().all_columns()];
        let empty = || match dy.iter().all(Option::is_some) {
            true => Tensor::undefined(device, Shape::new(&dims)?, DType::F32),
            false => Tensor::zeros(device, &dims),
        };
        let mut v = empty()?;
        let mut gated = if gates.is_some() { Some(empty()?) } else { None };
        for (l, dy) in dy.iter().enumerate() {
            let Some(dy) = dy else { continue };
            let slots = s.slots_b(l);
            let op = ExpandGrad { slots: &slots, selection: s, scale: self.scale, gated: gates.is_some() };
            let mut outputs = vec![&mut v];
            outputs.extend(gated.as_mut());
            if !self.need[l + 2] {
                shrink_into(&mut outputs, dy, &self.b[l], gates.as_ref(), &slots, self.scale)?;
                continue;
            }
            let mut sums = Tensor::undefined(device, self.b[l].shape().clone(), DType::F32)?;
            outputs.push(&mut sums);
            let mut inputs = vec![dy, &self.b[l], &self.gated];
            inputs.extend(gates.as_ref());
            run_in_place(&op, &mut outputs, &inputs)?;
            db[l] = Some(sums);
        }
        let gated = gated.unwrap_or_else(|| v.clone());
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
            let inputs = [dy, gated_v, &self.a];
            let inputs = &inputs[..if expand.is_some() { 3 } else { 1 }];
            match &mut dx {
                None => {
                    let op = FusedBa::backward(&self.weights[l], expand, false);
                    dx = Some(run(&op, inputs)?.swap_remove(0));
                }
                Some(dx) => {
                    let op = FusedBa::backward(&self.weights[l], expand, true);
                    run_in_place(&op, &mut [dx], inputs)?;
                }
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
    gated: bool,
}

impl ExpandGrad<'_> {
    fn gather(&self) -> FactorGather<'_> {
        FactorGather { slots: self.slots, scale: self.scale, dropout: None, in_place: true, force: None }
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
    /// Outputs of the shrink.
    fn shrunk(&self) -> usize {
        1 + usize::from(self.gated)
    }
    /// Inputs of the shrink, and of the sums.
    fn split<'t>(&self, x: &[&'t Tensor]) -> (Vec<&'t Tensor>, [&'t Tensor; 2]) {
        let mut shrink = vec![x[0], x[1]];
        shrink.extend(&x[3..]);
        (shrink, [x[2], x[0]])
    }
}

impl Op for ExpandGrad<'_> {
    fn name(&self) -> &'static str {
        super::NAME
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        let (outputs, inputs) = x.split_at(self.shrunk() + 1);
        let (shrink, sums) = self.split(inputs);
        let mut metas = self.gather().infer(&[&outputs[..self.shrunk()], &shrink[..]].concat())?;
        metas.extend(self.scatter().infer(&sums)?);
        Ok(metas)
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let (shrink, sums) = self.split(x);
        self.gather().reference(&shrink, &mut y[..self.shrunk()]);
        self.scatter().reference(&sums, &mut y[self.shrunk()..]);
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        if self.slots.units.is_tokens() {
            let (shrink, sums) = self.split(x);
            let (shrunk, pool) = y.split_at_mut(self.shrunk());
            self.gather().cpu(&shrink, shrunk);
            return self.scatter().cpu(&sums, pool);
        }
        let (d, gather) = (x[0].shape().last(), self.gather());
        let (dy, b, gu) = (x[0].f32(), x[1].f32(), x[2].f32());
        let gates = x.get(3).map(|g| g.f32());
        let (shrunk, sums) = y.split_at_mut(self.shrunk());
        let (v, gated) = match shrunk {
            [v, gated] => (v.f32_mut(), gated.f32_mut()),
            [v] => (v.f32_mut(), &mut [][..]),
            _ => return,
        };
        let before = |rows: Range<usize>, v: &mut [f32], gated: &mut [f32]| {
            gather.rows([dy, b], gates, d, rows.start, [v, gated]);
        };
        self.scatter().sums_of_units([gu, dy], d, [v, gated], &before, sums[0].f32_mut());
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        let (shrink, sums) = self.split(x);
        self.gather().gpu(gpu, &shrink, &y[..self.shrunk()])?;
        self.scatter().gpu(gpu, &sums, &y[self.shrunk()..])
    }
}
