//! The frozen product with the low-rank update in its epilogue: `y = x W^T + bias + s sum_k u_k b_k`.
//!
//! The backward pass uses the same op with `W` instead of its transpose: `dx = dy W + sum_k v_k a_k`.

use super::gemm::{Mat, gemm};
use super::slots::{Dropout, Slots};
use super::{Case, Meta, Op, OpSpec, Operand, rows_in_parallel, run};
use crate::device::{Entry, Host, PORTABLE, Shader, Variant, parts};
use crate::tape::Node;
use crate::{DType, Device, Error, Format, Result, Tensor, Weight};

pub(super) static SPEC: OpSpec = OpSpec {
    name: "fused_ba_matmul",
    formula: "y = x W^T + bias + s sum_k u_k b_k",
    shaders: &[&SHADER],
    cases,
};

const NAME: &str = "fused_ba_matmul";

macro_rules! variants {
    ($($name:literal: $load:ident $nt:literal $expand:literal $bias:literal $add:literal $drop:literal $units:literal,)+) => {
        [$(Variant {
            name: $name,
            consts: &[
                ("NT", $nt), ("EXPAND", $expand), ("BIAS", $bias), ("ADD", $add), ("DROP", $drop), ("UNITS", $units),
            ],
            parts: &[parts::$load, parts::RANDOM, parts::DROPOUT, parts::SLOTS],
            backends: PORTABLE,
            workgroup_bytes: 0,
        }),+]
    };
}
const DIRECT: [Variant; 6] = variants![
    "f32 frozen": LOAD_F32 1 0 1 0 0 0,
    "f32 forward": LOAD_F32 1 1 0 0 0 1,
    "f32 backward": LOAD_F32 0 1 0 1 1 1,
    "f16 forward": LOAD_F16 1 1 1 0 0 0,
    "bf16 forward": LOAD_BF16 1 1 1 0 0 1,
    "bf16 backward": LOAD_BF16 0 1 0 0 1 0,
];
const fn with_shared(v: [Variant; 6]) -> [Variant; 6] {
    let mut v = v;
    let mut i = 0;
    while i < 6 {
        v[i].workgroup_bytes = 2 * 4 * 1056;
        i += 1;
    }
    v
}
static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/fused_ba_matmul.wgsl"),
    entries: &[
        Entry { name: "direct", variants: &DIRECT },
        Entry { name: "tile", variants: &with_shared(DIRECT) },
    ],
};

/// The low-rank part of a product.
#[derive(Clone, Copy)]
pub(crate) struct Expand<'a> {
    pub slots: &'a Slots,
    pub scale: f32,
    pub dropout: Option<Dropout>,
}

/// `(x [M, K] [, u [M, slots of all linears], pool [P, N]]) -> y [M, N]`, or `y +=` when run in place.
pub(crate) struct FusedBa<'a> {
    pub w: &'a Weight,
    /// `x W^T` (a layer's forward) or `x W` (its backward).
    pub nt: bool,
    pub bias: Option<&'a Tensor>,
    pub expand: Option<Expand<'a>>,
    /// The output already holds values (see `run_in_place`).
    pub add: bool,
    /// GPU entry to use instead of the chosen one.
    pub variant: Option<&'static str>,
}

impl<'a> FusedBa<'a> {
    /// `x W^T + bias`
    pub fn forward(w: &'a Weight, bias: Option<&'a Tensor>, expand: Option<Expand<'a>>) -> Self {
        FusedBa { w, nt: true, bias, expand, add: false, variant: None }
    }
    /// `x W`
    pub fn backward(w: &'a Weight, expand: Option<Expand<'a>>, add: bool) -> Self {
        FusedBa { w, nt: false, bias: None, expand, add, variant: None }
    }
    fn inputs(&self) -> usize {
        if self.nt { self.w.cols() } else { self.w.rows() }
    }
    fn outputs(&self) -> usize {
        if self.nt { self.w.rows() } else { self.w.cols() }
    }
}

impl Op for FusedBa<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        let rest = &x[usize::from(self.add)..];
        rest.iter().try_for_each(|t| t.expect(NAME, DType::F32))?;
        let input = rest[0];
        if input.shape().last() != self.inputs() {
            let (n, k) = (self.outputs(), self.inputs());
            return Err(Error::shape(NAME, format!("rows of {} for a {k} -> {n} linear", input.shape())));
        }
        if !self.w.device().same(input.device()) {
            return Err(Error::shape(
                NAME,
                format!("input on '{}', weight on '{}'", input.device().name(), self.w.device().name()),
            ));
        }
        if let Some(b) = self.bias
            && b.dims() != [self.outputs()]
        {
            return Err(Error::shape(NAME, format!("bias {} for {} outputs", b.shape(), self.outputs())));
        }
        if let (Some(e), [_, u, pool]) = (&self.expand, rest) {
            e.slots.check(NAME, input.shape().rows(), pool)?;
            if u.dims() != [input.shape().rows(), e.slots.all_columns()]
                || pool.shape().last() != self.outputs()
            {
                let (n, w) = (self.outputs(), e.slots.all_columns());
                return Err(Error::shape(
                    NAME,
                    format!("u {} and pool {} for {w} slots, {n} outputs", u.shape(), pool.shape()),
                ));
            }
        }
        let out = Meta { shape: input.shape().with_last(self.outputs())?, dtype: DType::F32 };
        if self.add && *x[0].shape() != out.shape {
            return Err(Error::shape(NAME, format!("adding {} to {}", out.shape, x[0].shape())));
        }
        Ok(vec![out])
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let (k, n) = (self.inputs(), self.outputs());
        let old = if self.add { y[0].f64().to_vec() } else { vec![0.0; y[0].f64().len()] };
        for (m, y) in y[0].f64_mut().chunks_mut(n.max(1)).enumerate() {
            let row = &x[0].f64()[m * k..(m + 1) * k];
            y.copy_from_slice(&old[m * n..(m + 1) * n]);
            for shard in self.w.shards() {
                for (i, w) in shard.data.f64().chunks(self.w.cols().max(1)).enumerate() {
                    let i = shard.first + i;
                    match self.nt {
                        true => y[i] += row.iter().zip(w).map(|(a, b)| a * b).sum::<f64>(),
                        false => y.iter_mut().zip(w).for_each(|(y, w)| *y += row[i] * w),
                    }
                }
            }
            if let Some(b) = self.bias {
                y.iter_mut().zip(b.f64()).for_each(|(y, b)| *y += b);
            }
            if let Some(e) = &self.expand {
                let (u, pool, view) = (x[1].f64(), x[2].f64(), e.slots.view());
                for j in 0..e.slots.width() {
                    let c = e.scale as f64 * u[m * e.slots.all_columns() + e.slots.first_column() + j];
                    let factors = &pool[view.pick(m, j) * n..][..n];
                    for (i, (y, b)) in y.iter_mut().zip(factors).enumerate() {
                        let keep = e.dropout.map_or(1.0, |d| d.factor(m * n + i) as f64);
                        *y += keep * c * b;
                    }
                }
            }
        }
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        let (m, k, n) = (x[0].shape().rows(), self.inputs(), self.outputs());
        let (input, y) = (x[0].f32(), y[0].f32_mut());
        self.cpu_product(input, y, m);
        if let Some(b) = self.bias {
            let b = b.f32();
            rows_in_parallel(y, n, |_, y| y.iter_mut().zip(b).for_each(|(y, b)| *y += b));
        }
        if let Some(e) = &self.expand {
            e.cpu(x[1].f32(), x[2].f32(), y, n);
        }
        debug_assert_eq!(input.len(), m * k);
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        let mut first = true;
        let shards = self.w.shards();
        for (i, shard) in shards.iter().enumerate() {
            // Over several shards the forward product writes column ranges and the backward product adds up.
            let add = self.add || (!self.nt && !first);
            let expand = self.expand.filter(|_| self.nt || i + 1 == shards.len());
            self.gpu_shard(gpu, x, &y[0], shard, add, expand)?;
            first = false;
        }
        Ok(())
    }
}

impl FusedBa<'_> {
    fn cpu_product(&self, x: &[f32], y: &mut [f32], m: usize) {
        let (k, n) = (self.inputs(), self.outputs());
        let shards = self.w.shards();
        if let ([shard], Format::F32) = (shards, self.w.format()) {
            let w = Mat::new(shard.data.f32(), self.w.rows(), self.w.cols());
            let w = if self.nt { w.t() } else { w };
            return gemm(y, Mat::new(x, m, k), w, 1.0, self.add);
        }
        // Other formats are decoded block by block, so that no f32 copy of the whole weight exists.
        const BLOCK: usize = 512;
        let mut part = Vec::new();
        let mut add = self.add;
        for shard in shards {
            for r in (0..shard.rows).step_by(BLOCK) {
                let rows = BLOCK.min(shard.rows - r);
                let block = self.w.decode(shard, r..r + rows);
                let (w, at) = (Mat::new(&block, rows, self.w.cols()), shard.first + r);
                if self.nt {
                    part.resize(m * rows, 0.0);
                    gemm(&mut part, Mat::new(x, m, k), w.t(), 1.0, false);
                    for (y, part) in y.chunks_mut(n).zip(part.chunks(rows)) {
                        let y = &mut y[at..at + rows];
                        match self.add {
                            true => y.iter_mut().zip(part).for_each(|(y, v)| *y += v),
                            false => y.copy_from_slice(part),
                        }
                    }
                } else {
                    gemm(y, Mat::new(x, m, k).columns(at, rows), w, 1.0, add);
                    add = true;
                }
            }
        }
        if self.w.rows() == 0 && !self.add {
            y.fill(0.0);
        }
    }

    #[cfg(feature = "gpu")]
    fn gpu_shard(
        &self,
        gpu: &crate::device::Gpu,
        x: &[&Tensor],
        y: &Tensor,
        shard: &crate::Shard,
        add: bool,
        expand: Option<Expand<'_>>,
    ) -> Result<()> {
        use crate::device::{AdapterClass, Bind, Dispatch, Grid};
        let (m, k, n) = (x[0].shape().rows(), self.inputs(), self.outputs());
        let cols =
            self.w.format().row_words(self.w.cols()) * if self.w.format() == Format::F32 { 1 } else { 2 };
        let (shard_n, shard_k) = if self.nt { (shard.rows, k) } else { (n, shard.rows) };
        let (x_first, y_first) = if self.nt { (0, shard.first) } else { (shard.first, 0) };
        let mut params = Params {
            sizes: [m, shard_n, shard_k, k, x_first, n, y_first, cols].map(|v| v as u32),
            ..bytemuck::Zeroable::zeroed()
        };
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
        let entry = self.variant.unwrap_or(match gpu.class() {
            AdapterClass::Software => "direct",
            _ => "tile",
        });
        let load = match self.w.format() {
            Format::F32 => parts::LOAD_F32,
            Format::F16 => parts::LOAD_F16,
            Format::Bf16 => parts::LOAD_BF16,
        };
        let side = if entry == "direct" { 32 } else { 64 };
        gpu.dispatch(Dispatch {
            shader: &SHADER,
            entry,
            consts: &[
                ("NT", u32::from(self.nt)),
                ("EXPAND", u32::from(expand.is_some())),
                ("BIAS", u32::from(self.bias.is_some())),
                ("ADD", u32::from(add)),
                ("DROP", drop),
                ("UNITS", units),
            ],
            parts: &[load, parts::RANDOM, parts::DROPOUT, parts::SLOTS],
            bind: &bind,
            params: bytemuck::bytes_of(&params),
            grid: Grid::Xyz(shard_n.div_ceil(side), m.div_ceil(side), 1),
            flops: 2 * (m * shard_n * shard_k) as u64,
        })
    }
}

#[cfg(feature = "gpu")]
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    /// m, n, k, x_stride, x_first, y_stride, y_first, w_cols
    sizes: [u32; 8],
    scale: f32,
    /// u_stride, u_first, slots
    u: [u32; 3],
    slots: [u32; 5],
    key: [u32; 2],
    drop_p: f32,
    keep: f32,
}

impl Expand<'_> {
    /// Adds the low-rank update to rows of `n` values.
    pub fn cpu(&self, u: &[f32], pool: &[f32], y: &mut [f32], n: usize) {
        let (view, width) = (self.slots.view(), self.slots.width());
        let (stride, first) = (self.slots.all_columns(), self.slots.first_column());
        rows_in_parallel(y, n, |m, y| {
            let coefficients = &u[m * stride + first..][..width];
            let mut update = self.dropout.map(|_| vec![0.0; n]);
            let out = update.as_deref_mut().unwrap_or(y);
            for (j, &c) in coefficients.iter().enumerate() {
                let c = self.scale * c;
                let factors = &pool[view.pick(m, j) * n..][..n];
                out.iter_mut().zip(factors).for_each(|(y, b)| *y += c * b);
            }
            if let (Some(d), Some(update)) = (self.dropout, update) {
                y.iter_mut().zip(update).enumerate().for_each(|(i, (y, v))| *y += d.factor(m * n + i) * v);
            }
        });
    }
}

impl Tensor {
    /// A frozen linear layer: `y = x W^T + bias`, `x [.., K]`, `W [N, K]`, `bias [N]`, `y [.., N]`.
    ///
    /// The gradient goes to `x` only: frozen weights have none.
    ///
    /// # Errors
    /// The shapes do not fit, or the weight is on another device.
    ///
    /// ```
    /// use mixlora::{Device, Format, Tensor, Weight};
    /// let cpu = Device::cpu();
    /// let w = Weight::new(&cpu, 2, 3, &[1., 0., 0., 0., 1., 0.], Format::F32)?;
    /// let x = Tensor::from_f32(&cpu, &[1, 3], &[5., 6., 7.])?;
    /// assert_eq!(x.linear(&w, None)?.to_f32()?, [5., 6.]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    pub fn linear(&self, w: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
        self.linear_as(w, bias, None)
    }

    fn linear_as(&self, w: &Weight, bias: Option<&Tensor>, variant: Option<&'static str>) -> Result<Tensor> {
        let y = run(&FusedBa { variant, ..FusedBa::forward(w, bias, None) }, &[self])?.swap_remove(0);
        let w = w.clone();
        Ok(Node::record("linear", &[self], y, move |dy| {
            let op = FusedBa { variant, ..FusedBa::backward(&w, None, false) };
            Ok(vec![Some(run(&op, &[&dy])?.swap_remove(0))])
        }))
    }
}

/// The cases of the frozen product; the fused update is checked by `mixture` through `mixture_linears`.
fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let shapes = [(0, 4, 3), (1, 1, 1), (3, 5, 7), (33, 66, 40), (70, 130, 67), (70_000, 2, 3)];
    for format in [Format::F32, Format::F16, Format::Bf16] {
        for variant in [None, Some("direct"), Some("tile")] {
            for (m, k, n) in shapes {
                // Large shapes once per format: they cost the most and differ only in the grid.
                if m > 1000 && variant != Some("tile") {
                    continue;
                }
                let Operand::Values { data: w, .. } = Operand::normal("w", &[n, k]) else { continue };
                let Operand::Values { data: b, .. } = Operand::normal("bias", &[n]) else { continue };
                let shard_bytes = 4 * (format.row_words(k) * n.div_ceil(2).max(1)) as u64;
                let label = format!("{m}x{k}x{n} {} {}", format.name(), variant.unwrap_or("chosen"));
                let run = move |x: &[Tensor]| {
                    let d: &Device = x[0].device();
                    let w = Weight::sharded(d, n, k, &w, format, shard_bytes)?;
                    let b = Tensor::from_f32(d, &[n], &b)?;
                    Ok(vec![x[0].linear_as(&w, Some(&b), variant)?])
                };
                let flops = 2 * m * k * n;
                all.push(
                    Case::new(label, vec![Operand::normal("x", &[m, k])], run)
                        .sums(k.max(n))
                        .cost(flops, 4 * (m * k + n * k + m * n)),
                );
            }
        }
    }
    all
}
