//! The GPU back end.

use super::{Dims, Params, SHADER, SLICES, SLICES_VARIANT, VARIANTS};
use crate::Result;
use crate::device::{Bind, Gpu, GpuBuffer};
use crate::engine::launch::Kernel;
use std::sync::Arc;

/// Queries or keys of one workgroup.
const TILE: usize = 32;
/// Keys of a slice.
const SLICE: usize = 64;
/// Queries of a sequence up to which keys are cut into slices.
const FEW_QUERIES: usize = 8;

/// The operands that all tile kernels read: q, k, v, and the key mask.
pub(super) struct Inputs<'a> {
    pub qkv: [&'a GpuBuffer; 3],
    pub valid: Option<&'a GpuBuffer>,
}

impl<'a> Inputs<'a> {
    fn bind(&self) -> Vec<Bind<'a>> {
        let mut bind: Vec<Bind> = self.qkv.iter().map(|b| Bind::Read(b)).collect();
        bind.push(Bind::or_unused(self.valid, self.qkv[1]));
        bind
    }
}

fn params(dims: &Dims, masked: bool) -> Params {
    Params {
        b: dims.b as u32,
        s: dims.s as u32,
        t: dims.t as u32,
        room: dims.room as u32,
        h: dims.h as u32,
        kv: dims.kv as u32,
        d: dims.d as u32,
        behind: dims.behind as u32,
        ahead: dims.ahead as u32,
        masked: u32::from(masked),
        scale: dims.scale,
        // A cap of 0 caps nothing.
        cap: dims.softcap.unwrap_or(0.0),
    }
}

fn launch(
    gpu: &Gpu,
    entry: &'static str,
    dims: &Dims,
    bind: &[Bind<'_>],
    masked: bool,
    groups: usize,
    flops: usize,
) -> Result<()> {
    let variant = match (entry, dims.d) {
        ("stats", _) | (_, 0..=64) => &VARIANTS[0],
        (_, 65..=128) => &VARIANTS[1],
        _ => &VARIANTS[2],
    };
    Kernel { shader: &SHADER, entry, variant }.run(gpu, bind, &params(dims, masked), groups, flops)
}

/// One of the kernels that walk over score tiles.
fn tiles(
    gpu: &Gpu,
    entry: &'static str,
    dims: &Dims,
    x: &Inputs<'_>,
    more: &[&GpuBuffer],
    out: &[&GpuBuffer],
) -> Result<()> {
    let mut bind = x.bind();
    bind.extend(more.iter().map(|b| Bind::Read(b)));
    bind.extend(out.iter().map(|b| Bind::Write(b)));
    let groups = match entry {
        "backward_kv" => dims.b * dims.kv * dims.t.div_ceil(TILE),
        _ => dims.b * dims.h * dims.s.div_ceil(TILE),
    };
    let flops = 4 * dims.b * dims.h * dims.s * dims.t * dims.d;
    launch(gpu, entry, dims, &bind, x.valid.is_some(), groups, flops)
}

/// The most keys that a query sees.
fn keys_of_query(dims: &Dims) -> usize {
    dims.t.min(dims.behind + dims.ahead + 1)
}

/// Attention of few queries: their keys in slices, since tiles of 32 queries would leave most of a GPU without work.
fn slices(gpu: &Arc<Gpu>, dims: &Dims, x: &Inputs<'_>, o: &GpuBuffer, lse: &GpuBuffer) -> Result<()> {
    let rows = dims.b * dims.h * dims.s;
    let slices = keys_of_query(dims).div_ceil(SLICE);
    let sums = gpu.alloc(rows * slices * dims.d)?;
    let tops = gpu.alloc(2 * rows * slices)?;
    let params = params(dims, x.valid.is_some());
    let kernel = |entry| Kernel { shader: &SLICES, entry, variant: &SLICES_VARIANT[0] };
    let mut bind = x.bind();
    bind.extend([Bind::Write(&sums), Bind::Write(&tops)]);
    kernel("slices").run(gpu, &bind, &params, rows * slices, 4 * rows * dims.t * dims.d)?;
    let bind = [Bind::Read(&sums), Bind::Read(&tops), Bind::Write(o), Bind::Write(lse)];
    kernel("merge").run(gpu, &bind, &params, rows, 2 * rows * slices * dims.d)
}

pub(super) fn forward(
    gpu: &Arc<Gpu>,
    dims: &Dims,
    x: &Inputs<'_>,
    o: &GpuBuffer,
    lse: &GpuBuffer,
) -> Result<()> {
    let few = (1..=FEW_QUERIES).contains(&dims.s) && dims.b > 0;
    // The keys of a single slice would need no merging: a tile serves them in one launch.
    if few && keys_of_query(dims) > SLICE {
        return slices(gpu, dims, x, o, lse);
    }
    tiles(gpu, "forward", dims, x, &[], &[o, lse])
}

/// `kept` is o, lse, dy; `grads` is dq, dk, dv.
pub(super) fn backward(
    gpu: &Arc<Gpu>,
    dims: &Dims,
    x: &Inputs<'_>,
    [o, lse, dy]: [&GpuBuffer; 3],
    [dq, dk, dv]: [&GpuBuffer; 3],
) -> Result<()> {
    let rows = dims.b * dims.h * dims.s;
    // At least one pair, so that the binding is valid without any query.
    let stats = gpu.alloc(2 * rows.max(1))?;
    let bind = [Bind::Read(o), Bind::Read(dy), Bind::Read(lse), Bind::Write(&stats)];
    launch(gpu, "stats", dims, &bind, false, rows.div_ceil(64), 2 * rows * dims.d)?;
    tiles(gpu, "backward_q", dims, x, &[dy, &stats], &[dq])?;
    tiles(gpu, "backward_kv", dims, x, &[dy, &stats], &[dk, dv])
}
