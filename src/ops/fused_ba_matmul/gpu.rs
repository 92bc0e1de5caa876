//! The GPU back end: one launch per shard of the weight.

use super::{Expand, FusedBa, In, Params, SHADER};
use crate::device::{Bind, CoopSize, Gpu, parts};
use crate::engine::product::{Product, Sizes, Tiling, choose, cooperative};
use crate::engine::run1;
use crate::routing::Dropout;
use crate::{Device, Error, Format, Result, Shard, Tensor, Weight};
use std::sync::Arc;

impl FusedBa<'_> {
    pub(super) fn shard(
        &self,
        gpu: &Arc<Gpu>,
        x: &In<'_>,
        y: &Tensor,
        shard: &Shard,
        add: bool,
        expand: Option<Expand<'_>>,
    ) -> Result<()> {
        let m = x.x.shape().rows();
        let k = self.inputs();
        let n = self.outputs();
        let (shard_n, shard_k) = if self.nt { (shard.rows, k) } else { (n, shard.rows) };
        let (x_first, y_first) = if self.nt { (0, shard.first) } else { (shard.first, 0) };
        let mut params = Params { y_stride: n as u32, y_first: y_first as u32, ..Params::default() };
        let xb = x.x.buffer();
        let stand_in = x.x.buffer();
        let mut bind = vec![
            Bind::Read(xb),
            Bind::Read(shard.data.buffer()),
            Bind::Write(y.buffer()),
            Bind::or_unused(self.bias.map(|b| b.buffer()), stand_in),
        ];
        let mut drop = 0;
        let mut units = 0;
        if let (Some(e), Some(u), Some(pool)) = (expand, x.u, x.pool) {
            params.scale = e.scale;
            params.u_stride = e.slots.all_columns() as u32;
            params.u_first = e.slots.first_column() as u32;
            params.slots = e.slots.width() as u32;
            [params.s_base, params.s_step, params.s_k, params.s_block, params.s_pool_rows] = e.slots.params();
            ([params.key0, params.key1], params.drop_p, params.keep) = Dropout::params(&e.dropout);
            (drop, units) = (u32::from(e.dropout.is_some()), u32::from(!e.slots.units.is_tokens()));
            bind.extend([
                Bind::Read(u.buffer()),
                Bind::Read(pool.buffer()),
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
            w_first: 0,
            bind: &bind,
            consts: &[
                ("EXPAND", u32::from(expand.is_some())),
                ("BIAS", u32::from(self.bias.is_some())),
                ("ADD", u32::from(add)),
                ("DROP", drop),
                ("UNITS", units),
            ],
            parts: &[parts::RANDOM, parts::DROPOUT, parts::SLOTS],
        };
        let Sizes { m, n, k, groups, a_stride, a_first, w_first, w_words } = product.sizes();
        product.run(gpu, &Params { m, n, k, groups, a_stride, a_first, w_first, w_words, ..params })
    }
}

impl FusedBa<'_> {
    /// The tiling with cooperative matrices, if this product may and should use it. Backward products never do:
    /// gradients may lie below what f16 holds.
    fn coop(&self, gpu: &Arc<Gpu>, m: usize, n: usize, k: usize) -> Option<Tiling> {
        // Few rows are a stream of the weight, and a small result leaves most of a tile empty.
        let pays = self.nt && m > 8 && n > 16 && k >= 16;
        let size = if pays { gpu.coop(|size| self_test(gpu, size)) } else { None };
        size.map(cooperative)
    }
}

/// A product of small integers, whose sums are exact in whatever order: anything but equal is wrong.
fn self_test(gpu: &Arc<Gpu>, size: CoopSize) -> Result<()> {
    let m = 69;
    let n = 77;
    let k = 52;
    let device = Device::Gpu(gpu.clone());
    let integers = |count: usize, step: usize| -> Vec<f32> {
        (0..count).map(|i| (i * step % 31) as f32 - 15.0).collect()
    };
    let x = integers(m * k, 7);
    let w = integers(n * k, 11);
    let weight = Weight::new(&device, n, k, &w, Format::F32)?;
    let op = FusedBa { variant: Some(cooperative(size)), ..FusedBa::forward(&weight, None, None) };
    let got = run1(&op, In::product(&Tensor::from_f32(&device, &[m, k], &x)?))?.to_f32()?;
    let wrong = (0..m * n).filter(|&i| {
        let x = &x[i / n * k..][..k];
        let w = &w[i % n * k..][..k];
        got[i] != x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>()
    });
    match wrong.count() {
        0 => Ok(()),
        count => Err(Error::Gpu(format!("{count} of {} values differ", m * n))),
    }
}
