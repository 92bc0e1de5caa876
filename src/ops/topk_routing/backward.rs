//! Gradients of a routing: of the logits, and of the condition's table.

#[cfg(feature = "gpu")]
use super::gpu::Launch;
use super::math::spread;
use super::{Extra, NAME, Routing, Table, for_units, one_side, put, sizes, wide};
use crate::device::Host;
use crate::engine::{Meta, Op};
use crate::{Result, Tensor};

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

impl Op for Backward<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        let (g, l, e) = sizes(x[0]);
        let mut out = vec![match self.sparse {
            true => Meta::f32(&[g, l * self.routing.k])?,
            false => Meta::like(x[0]),
        }];
        if self.routing.condition.is_some() {
            out.push(Meta::f32(&[l, g, self.rows(), e])?);
        }
        Ok(out)
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let (units, linears, e) = sizes(x[0]);
        let Routing { k, sides, .. } = *self.routing;
        let s = self.rows();
        let grads = for_units(self.routing, &self.extra, x[0], |l, unit, u| {
            let dg = wide(x[1], (l * units + unit) * k, k);
            (l, unit, u.backward(self.of(0, l, unit), self.of(sides - 1, l, unit), &dg))
        });
        for (l, unit, grad) in grads {
            if self.sparse {
                put(&mut y[0], (unit * linears + l) * k, &grad.chosen);
                continue;
            }
            let at = (unit * linears + l) * sides * e;
            put(&mut y[0], at, &spread(&grad.chosen, self.of(0, l, unit), e));
            if sides == 2 {
                put(&mut y[0], at + e, &grad.zb);
            }
            if self.routing.condition.is_some() {
                put(&mut y[1], (l * units + unit) * s * e, &grad.rows);
            }
        }
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        if self.routing.sides == 2 {
            return self.reference(x, y);
        }
        let side = one_side(self.routing, &self.extra, x[0]);
        side.backward(self.idx.u32(), x[1].f32(), self.sparse, y[0].f32_mut());
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        use crate::device::Bind;
        let (units, linears, _) = sizes(x[0]);
        let z = x[0].buffer();
        let no_rows = if y.len() == 1 { Some(gpu.alloc(1)?) } else { None };
        let bind = [
            Bind::Read(z),
            Bind::or_unused(self.extra.bias.map(|t| t.buffer()), z),
            Bind::or_unused(self.extra.table.map(|t| t.tensor().buffer()), z),
            Bind::Read(self.idx.buffer()),
            Bind::Read(x[1].buffer()),
            Bind::Write(y[0].buffer()),
            Bind::Write(no_rows.as_ref().unwrap_or_else(|| y[1].buffer())),
        ];
        let launch =
            Launch { entry: "backward", routing: self.routing, extra: &self.extra, sparse: self.sparse };
        launch.run(gpu, x[0], &bind, linears * units)
    }
}

impl Op for TableGrad<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        let (l, e) = (x[0].dims()[0], x[0].dims()[3]);
        Ok(vec![Meta::f32(&[l, e, e, self.routing.table_slots()])?])
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let [l, units, s, e] = *x[0].dims() else { unreachable!("rows come from the backward pass") };
        let Routing { k, sides, .. } = *self.routing;
        let mut sum = vec![0.0; l * e * e * s];
        for (i, &factor) in self.idx.u32().iter().enumerate() {
            let (linear, side, unit, choice) =
                (i / (sides * units * k), i / (units * k) % sides, i / k % units, i % k);
            if side > 0 {
                continue;
            }
            let slot = choice.min(s - 1);
            let row = wide(x[0], ((linear * units + unit) * s + slot) * e, e);
            for (j, d) in row.iter().enumerate() {
                sum[((linear * e + factor as usize) * e + j) * s + slot] += d;
            }
        }
        put(&mut y[0], 0, &sum);
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        self.reference(x, y);
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        use crate::device::Bind;
        let bind = [Bind::Read(x[0].buffer()), Bind::Read(self.idx.buffer()), Bind::Write(y[0].buffer())];
        let z = x[0].reshape(&[x[0].dims()[1], x[0].dims()[0], x[0].dims()[2], x[0].dims()[3]])?;
        let launch =
            Launch { entry: "table", routing: self.routing, extra: &Extra::default(), sparse: false };
        launch.run(gpu, &z, &bind, y[0].len())
    }
}
