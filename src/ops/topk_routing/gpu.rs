//! Launching the routing kernels.

use super::{Extra, PARTS_LANE, PARTS_WIDE, Params, Routing, SHADER, Table, WG, sizes};
use crate::device::{AdapterClass, Bind, Dispatch, Gpu, Grid, Parameters};
use crate::{Result, Tensor};

/// A launch of one of the kernels.
pub(super) struct Launch<'a> {
    pub entry: &'static str,
    pub routing: &'a Routing,
    pub extra: &'a Extra<'a>,
    pub sparse: bool,
}

impl Launch<'_> {
    /// `z` gives the sizes: `[units, linears, .., factors]`.
    pub fn run(&self, gpu: &Gpu, z: &Tensor, bind: &[Bind<'_>], items: usize) -> Result<()> {
        let Launch { entry, routing: r, extra, sparse } = *self;
        let (units, linears, e) = sizes(z);
        // A workgroup per unit where there are few of them and many factors.
        let wide = match r.variant {
            Some(v) => v == "wide",
            None => gpu.class() != AdapterClass::Software && items < 1024 && e >= 32,
        };
        let cfs = r.condition.map_or(0, |c| if c.choice { 2 } else { 1 });
        let params = Params {
            units: units as u32,
            linears: linears as u32,
            e: e as u32,
            scale: r.gate_scale,
            lambda: r.condition.map_or(0.0, |c| c.weight),
        };
        gpu.dispatch(Dispatch {
            shader: &SHADER,
            entry,
            consts: &[
                ("WG", WG),
                ("STRIDE", if wide { WG } else { 1 }),
                ("K", r.k as u32),
                ("SIDES", r.sides as u32),
                ("SCORE", r.score as u32),
                ("CFS", cfs),
                ("GATED", u32::from(r.gated)),
                ("SCALED", u32::from(r.condition.is_some_and(|c| c.gated_input))),
                ("FORCED", u32::from(extra.forced.is_some())),
                ("CHOSEN", u32::from(Table::of_choices(&extra.table))),
                ("SPARSE", u32::from(sparse)),
            ],
            parts: if wide { PARTS_WIDE } else { PARTS_LANE },
            bind,
            params: params.bytes(),
            grid: Grid::Linear(if wide && entry != "table" { items } else { items.div_ceil(WG as usize) }),
            flops: (items * e * (3 * r.k + 2)) as u64,
        })
    }
}
