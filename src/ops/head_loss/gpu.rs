//! The GPU back end.

use super::{FORMATS, HeadLoss, In, Kernel, Params, SHADER, VARIANTS};
use crate::device::{AdapterClass, Bind, Gpu};
use crate::engine::launch;
use crate::{Result, Tensor};
use std::sync::Arc;

/// Software adapters pay for loads and barriers alike, and few rows leave most of a tile empty.
fn kernel(class: AdapterClass, rows: usize) -> Kernel {
    match class {
        AdapterClass::Software => Kernel::Direct,
        _ if rows <= 16 => Kernel::Direct,
        _ => Kernel::Tile,
    }
}

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
    fn go(
        &self,
        entry: &'static str,
        step: usize,
        part: Part,
        bind: &[Bind<'_>],
        groups: usize,
    ) -> Result<()> {
        let w = &self.op.weight;
        let format = w.format() as usize;
        let (variant, flops) = match entry {
            "direct" | "tile" => (FORMATS * step + format, 2 * self.r * w.cols() * part.len),
            "finish" => (format, self.r * w.cols()),
            _ => (0, self.r * part.len),
        };
        let params = Params {
            r: self.r as u32,
            d: w.cols() as u32,
            vocabulary: w.rows() as u32,
            w_words: w.format().row_words(w.cols()) as u32,
            first: part.first as u32,
            row0: part.row0 as u32,
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
}

pub(super) fn walk(op: &HeadLoss, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 2]) -> Result<()> {
    let h = x.h.buffer();
    let w = &op.weight;
    let r = x.targets.len();
    let d = w.cols();
    let walk = Walk { op, gpu, r, line: chunk(r, w.rows()) };
    let (entry, tile) = match op.force.unwrap_or(kernel(gpu.class(), r)) {
        Kernel::Direct => ("direct", 32),
        Kernel::Tile => ("tile", 64),
    };
    let tiles = |columns: usize| r.div_ceil(tile) * columns.div_ceil(tile);
    let list = gpu.alloc(1 + r)?;
    let z = gpu.alloc(r * walk.line)?;
    let state = gpu.alloc(4 * r.max(1))?;
    let (targets, rows, sums) =
        (|| Bind::Read(x.targets.buffer()), || Bind::Read(&list), || Bind::Read(&state));
    let dh = op.gradient.then(|| y[1].buffer());
    walk.go("compact", 0, Part::default(), &[targets(), Bind::Write(&list)], 1)?;
    dh.map_or(Ok(()), |dh| gpu.clear(dh))?;
    for shard in w.shards() {
        let weight = || Bind::Read(shard.data.buffer());
        for row0 in (0..shard.rows).step_by(walk.line) {
            let len = walk.line.min(shard.rows - row0);
            let part = Part { first: shard.first + row0, row0, len };
            let bind = [Bind::Read(h), weight(), rows(), sums(), Bind::Write(&z)];
            walk.go(entry, 0, part, &bind, tiles(len))?;
            let bind = [targets(), rows(), Bind::Write(&z), Bind::Write(&state)];
            walk.go("update", 0, part, &bind, r)?;
            if let Some(dh) = dh {
                let bind = [Bind::Read(&z), weight(), rows(), sums(), Bind::Write(dh)];
                walk.go(entry, 1, part, &bind, tiles(d))?;
            }
        }
    }
    if let Some(dh) = dh {
        for shard in w.shards() {
            let part = Part { first: shard.first, row0: 0, len: shard.rows };
            let bind = [Bind::Write(dh), Bind::Read(shard.data.buffer()), rows(), sums(), targets()];
            walk.go("finish", 0, part, &bind, r)?;
        }
    }
    walk.go("total", 0, Part::default(), &[targets(), rows(), sums(), Bind::Write(y[0].buffer())], 1)
}
