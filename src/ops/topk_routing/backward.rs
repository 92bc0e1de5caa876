//! Gradients of a routing: of the logits, and of the condition's table.

use super::gpu::Launch;
use super::math::spread;
use super::{Extra, NAME, Routing, Table, for_units, one_side, put, sizes, wide};
use crate::device::{Gpu, Host};
use crate::engine::{Meta, Op, operands};
use crate::{Result, Tensor};
use std::sync::Arc;

/// `(z, dgates) -> dz [, drow [L, G, S, E]]`, with S = K for a table of choices
pub(super) struct Backward<'a> {
    pub routing: &'a Routing,
    pub extra: Extra<'a>,
    pub idx: &'a Tensor,
    /// Of one side: the gradient of the chosen logits alone, `[G, L * K]`; the others have none.
    pub sparse: bool,
}

/// `drow [L, G, S, E] -> dtable [L, E, E, S]`
pub(super) struct TableGrad<'a> {
    pub routing: &'a Routing,
    pub idx: &'a Tensor,
}

impl Backward<'_> {
    /// Rows of the condition's gradient per unit.
    fn rows(&self) -> usize {
        if Table::of_choices(&self.extra.table) { self.routing.k } else { self.routing.table_slots() }
    }
    /// The choices of a unit.
    fn of(&self, side: usize, l: usize, unit: usize) -> &[u32] {
        let [_, sides, units, k] = *self.idx.dims() else { return &[] };
        &self.idx.u32()[((l * sides + side) * units + unit) * k..][..k]
    }
}

operands! {
    pub(super) struct BackwardIn { z, dgates }
}

impl Op<2> for Backward<'_> {
    type In<'a> = BackwardIn<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &BackwardIn<'_>) -> Result<[Meta; 2]> {
        let (g, l, e) = sizes(x.z);
        let dz = if self.sparse { Meta::f32(&[g, l * self.routing.k])? } else { Meta::like(x.z) };
        let rows = match self.routing.condition {
            Some(_) => Meta::f32(&[l, g, self.rows(), e])?,
            None => Meta::f32(&[0])?,
        };
        Ok([dz, rows])
    }

    fn reference(&self, x: &BackwardIn<'_>, [dz, rows]: [&mut Host; 2]) {
        let (units, linears, e) = sizes(x.z);
        let Routing { k, sides, .. } = *self.routing;
        let s = self.rows();
        let grads = for_units(self.routing, &self.extra, x.z, |l, unit, u| {
            let dg = wide(x.dgates, (l * units + unit) * k, k);
            (l, unit, u.backward(self.of(0, l, unit), self.of(sides - 1, l, unit), &dg))
        });
        for (l, unit, grad) in grads {
            if self.sparse {
                put(dz, (unit * linears + l) * k, &grad.chosen);
                continue;
            }
            let at = (unit * linears + l) * sides * e;
            put(dz, at, &spread(&grad.chosen, self.of(0, l, unit), e));
            if sides == 2 {
                put(dz, at + e, &grad.zb);
            }
            if self.routing.condition.is_some() {
                put(rows, (l * units + unit) * s * e, &grad.rows);
            }
        }
    }

    fn cpu(&self, x: &BackwardIn<'_>, [dz, rows]: [&mut Host; 2]) {
        if self.routing.sides == 2 {
            return self.reference(x, [dz, rows]);
        }
        let side = one_side(self.routing, &self.extra, x.z);
        side.backward(self.idx.u32(), x.dgates.f32(), self.sparse, dz.f32_mut());
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &BackwardIn<'_>, y: &[Tensor; 2]) -> Result<()> {
        use crate::device::Bind;
        let (units, linears, _) = sizes(x.z);
        let z = x.z.buffer();
        let bind = [
            Bind::Read(z),
            Bind::or_unused(self.extra.bias.map(|t| t.buffer()), z),
            Bind::or_unused(self.extra.table.map(|t| t.tensor().buffer()), z),
            Bind::Read(self.idx.buffer()),
            Bind::Read(x.dgates.buffer()),
            Bind::Write(y[0].buffer()),
            Bind::Write(y[1].buffer()),
        ];
        let launch =
            Launch { entry: "backward", routing: self.routing, extra: &self.extra, sparse: self.sparse };
        launch.run(gpu, x.z, &bind, linears * units)
    }
}

operands! {
    pub(super) struct TableIn { rows }
}

impl Op for TableGrad<'_> {
    type In<'a> = TableIn<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, &TableIn { rows }: &TableIn<'_>) -> Result<[Meta; 1]> {
        let l = rows.dims()[0];
        let e = rows.dims()[3];
        Ok([Meta::f32(&[l, e, e, self.routing.table_slots()])?])
    }

    fn reference(&self, &TableIn { rows }: &TableIn<'_>, [y]: [&mut Host; 1]) {
        let [l, units, s, e] = *rows.dims() else { unreachable!("rows come from the backward pass") };
        let Routing { k, sides, .. } = *self.routing;
        let mut sum = vec![0.0; l * e * e * s];
        for (i, &factor) in self.idx.u32().iter().enumerate() {
            let linear = i / (sides * units * k);
            let side = i / (units * k) % sides;
            let unit = i / k % units;
            let choice = i % k;
            if side > 0 {
                continue;
            }
            let slot = choice.min(s - 1);
            let row = wide(rows, ((linear * units + unit) * s + slot) * e, e);
            for (j, d) in row.iter().enumerate() {
                sum[((linear * e + factor as usize) * e + j) * s + slot] += d;
            }
        }
        put(y, 0, &sum);
    }

    fn cpu(&self, x: &TableIn<'_>, y: [&mut Host; 1]) {
        self.reference(x, y);
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &TableIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        use crate::device::Bind;
        let bind = [Bind::Read(x.rows.buffer()), Bind::Read(self.idx.buffer()), Bind::Write(y[0].buffer())];
        let z = x.rows.reshape(&[x.rows.dims()[1], x.rows.dims()[0], x.rows.dims()[2], x.rows.dims()[3]])?;
        let launch =
            Launch { entry: "table", routing: self.routing, extra: &Extra::default(), sparse: false };
        launch.run(gpu, &z, &bind, y[0].len())
    }
}
