//! The GPU back end.

use super::{HeadLoss, In, PRODUCT, Params, ProductParams, SHADER, VARIANTS};
use crate::device::{Bind, Gpu};
use crate::engine::launch;
use crate::engine::product::{Product, Sizes, choose};
use crate::{Result, Tensor};
use std::sync::Arc;

/// Rows of the vocabulary per chunk: 16 MiB of logits, in steps of a tile.
fn chunk(rows: usize, vocabulary: usize) -> usize {
    ((1 << 22) / rows.max(1)).clamp(64, 8192).min(vocabulary.max(1)).next_multiple_of(64)
}

/// Rows `first ..` of the vocabulary, which start at `row0` of their shard.
#[derive(Clone, Copy, Default)]
struct Part {
    first: usize,
    row0: usize,
    len: usize,
}

struct Walk<'a> {
    op: &'a HeadLoss,
    gpu: &'a Arc<Gpu>,
    /// Positions and logits per position.
    r: usize,
    line: usize,
}

impl Walk<'_> {
    fn go(&self, entry: &'static str, part: Part, bind: &[Bind<'_>], groups: usize) -> Result<()> {
        let w = &self.op.weight;
        let (variant, flops) = match entry {
            "normalize" => (w.format() as usize, self.r * w.cols()),
            _ => (0, self.r * part.len),
        };
        let params = Params {
            r: self.r as u32,
            d: w.cols() as u32,
            vocabulary: w.rows() as u32,
            w_words: w.format().row_words(w.cols()) as u32,
            first: part.first as u32,
            len: part.len as u32,
            line: self.line as u32,
            start: u32::from(part.first == 0),
            nan: f32::NAN,
            // A cap of 0 caps nothing.
            cap: self.op.softcap.unwrap_or(0.0),
        };
        let kernel = launch::Kernel { shader: &SHADER, entry, variant: &VARIANTS[variant] };
        kernel.run(self.gpu, bind, &params, groups, flops)
    }

    /// The logits of a chunk, or what it adds to the gradient.
    fn product(&self, gradient: bool, part: Part, bind: &[Bind<'_>]) -> Result<()> {
        let w = &self.op.weight;
        let d = w.cols();
        let (n, k, a_row, line) =
            if gradient { (d, part.len, self.line, d) } else { (part.len, d, d, self.line) };
        let product = Product {
            shader: &PRODUCT,
            tiling: self.op.force.unwrap_or_else(|| choose(self.gpu.class(), self.gpu.tuned(), self.r, n, k)),
            format: w.format(),
            batch: 1,
            m: self.r,
            n,
            k,
            ta: false,
            tb: !gradient,
            a_row,
            a_first: 0,
            w_row: d,
            w_first: part.row0,
            bind,
            consts: &[("STEP", u32::from(gradient))],
            parts: &[],
        };
        let Sizes { m, n, k, groups, a_stride, a_first, w_first, w_words } = product.sizes();
        let line = line as u32;
        product.run(self.gpu, &ProductParams { m, n, k, groups, a_stride, a_first, w_first, w_words, line })
    }
}

pub(super) fn walk(op: &HeadLoss, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 2]) -> Result<()> {
    let h = x.h.buffer();
    let w = &op.weight;
    let r = x.targets.len();
    let walk = Walk { op, gpu, r, line: chunk(r, w.rows()) };
    let list = gpu.alloc(1 + r)?;
    let z = gpu.alloc(r * walk.line)?;
    let state = gpu.alloc(4 * r.max(1))?;
    let (targets, rows, sums) =
        (|| Bind::Read(x.targets.buffer()), || Bind::Read(&list), || Bind::Read(&state));
    let dh = op.gradient.then(|| y[1].buffer());
    walk.go("compact", Part::default(), &[targets(), Bind::Write(&list)], 1)?;
    dh.map_or(Ok(()), |dh| gpu.clear(dh))?;
    for shard in w.shards() {
        let weight = || Bind::Read(shard.data.buffer());
        for row0 in (0..shard.rows).step_by(walk.line) {
            let len = walk.line.min(shard.rows - row0);
            let part = Part { first: shard.first + row0, row0, len };
            let bind = [Bind::Read(h), weight(), rows(), sums(), Bind::Write(&z)];
            walk.product(false, part, &bind)?;
            let bind = [targets(), rows(), Bind::Write(&z), Bind::Write(&state)];
            walk.go("update", part, &bind, r)?;
            if let Some(dh) = dh {
                let bind = [Bind::Read(&z), weight(), rows(), sums(), Bind::Write(dh)];
                walk.product(true, part, &bind)?;
            }
        }
    }
    if let Some(dh) = dh {
        for shard in w.shards() {
            let part = Part { first: shard.first, row0: 0, len: shard.rows };
            let bind = [Bind::Write(dh), Bind::Read(shard.data.buffer()), rows(), sums(), targets()];
            walk.go("normalize", part, &bind, r)?;
        }
    }
    walk.go("total", Part::default(), &[targets(), rows(), sums(), Bind::Write(y[0].buffer())], 1)
}
