//! The GPU lane: one launch per shard of the weight.

use super::{Expand, FusedBa, SHADER};
use crate::device::{Bind, Gpu, parts};
use crate::ops::product::{Product, choose};
use crate::ops::slots::Dropout;
use crate::{Result, Shard, Tensor};
use std::sync::Arc;

impl FusedBa<'_> {
    pub(super) fn shard(
        &self,
        gpu: &Arc<Gpu>,
        x: &[&Tensor],
        y: &Tensor,
        shard: &Shard,
        add: bool,
        expand: Option<Expand<'_>>,
    ) -> Result<()> {
        let (m, k, n) = (x[0].shape().rows(), self.inputs(), self.outputs());
        let (shard_n, shard_k) = if self.nt { (shard.rows, k) } else { (n, shard.rows) };
        let (x_first, y_first) = if self.nt { (0, shard.first) } else { (shard.first, 0) };
        let mut params: Params = bytemuck::Zeroable::zeroed();
        params.y = [n, y_first].map(|v| v as u32);
        let (xb, stand_in) = (x[0].buffer(), x[0].buffer());
        let mut bind = vec![
            Bind::Read(xb),
            Bind::Read(shard.data.buffer()),
            Bind::Write(y.buffer()),
            Bind::or_unused(self.bias.map(|b| b.buffer()), stand_in),
        ];
        let (mut drop, mut units) = (0, 0);
        if let Some(e) = expand {
            params.scale = e.scale;
            params.u = [e.slots.all_columns(), e.slots.first_column(), e.slots.width()].map(|v| v as u32);
            params.slots = e.slots.params();
            (params.key, params.drop_p, params.keep) = Dropout::params(&e.dropout);
            (drop, units) = (u32::from(e.dropout.is_some()), u32::from(!e.slots.units.is_tokens()));
            bind.extend([
                Bind::Read(x[1].buffer()),
                Bind::Read(x[2].buffer()),
                Bind::Read(e.slots.idx.buffer()),
            ]);
            bind.push(Bind::or_unused(e.slots.units.row_unit().map(|t| t.buffer()), stand_in));
        } else {
            bind.extend([0; 4].map(|_| Bind::Unused(stand_in)));
        }
        let tiling = self.variant.or_else(|| self.coop(gpu, m, shard_n, shard_k));
        let product = Product {
            shader: &SHADER,
            tiling: tiling.unwrap_or_else(|| choose(gpu.class(), gpu.tuned(), m, shard_n, shard_k)),
            format: self.w.format(),
            batch: 1,
            m,
            n: shard_n,
            k: shard_k,
            ta: false,
            tb: self.nt,
            a_row: k,
            a_first: x_first,
            w_row: self.w.cols(),
            bind: &bind,
            consts: &[
                ("EXPAND", u32::from(expand.is_some())),
                ("BIAS", u32::from(self.bias.is_some())),
                ("ADD", u32::from(add)),
                ("DROP", drop),
                ("UNITS", units),
            ],
            parts: &[parts::RANDOM, parts::DROPOUT, parts::SLOTS],
            params: bytemuck::bytes_of(&params),
        };
        product.run(gpu)
    }
}

/// What follows the parameters of the product.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    /// y_stride, y_first
    y: [u32; 2],
    scale: f32,
    /// u_stride, u_first, slots
    u: [u32; 3],
    slots: [u32; 5],
    key: [u32; 2],
    drop_p: f32,
    keep: f32,
}
