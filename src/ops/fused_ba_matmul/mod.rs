//! The frozen product with the low-rank update in its epilogue: `y = x W^T + bias + s sum_k u_k b_k`.
//!
//! The backward pass uses the same op with `W` instead of its transpose: `dx = dy W + sum_k v_k a_k`.

mod cases;
mod cpu;
mod gpu;

use crate::device::{COOP_8, COOP_16, Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::launch::each_format;
use crate::engine::product::{COOP_BYTES, TILE_BYTES, Tiling, VECTOR_BYTES};
use crate::engine::{Meta, Op, OpSpec, Operands, operands, run1};
use crate::routing::{Dropout, Slots};
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor, Weight};
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "fused_ba_matmul",
    formula: "y = x W^T + bias + s sum_k u_k b_k",
    shaders: &[&SHADER],
    cases: cases::cases,
    timed: cases::timed,
};

const NAME: &str = "fused_ba_matmul";

macro_rules! variant {
    (
        $name:expr, [$r:literal $v:literal $lanes:literal],
        $tb:literal $expand:literal $bias:literal $add:literal $drop:literal $units:literal,
        $backends:expr, $bytes:expr, [$($part:ident),+]
    ) => {
        Variant {
            name: $name,
            consts: &[
                ("R", $r), ("V", $v), ("X", 8), ("Y", 8), ("LANES", $lanes), ("TA", 0), ("TB", $tb), ("EDGE", 0),
                ("EXPAND", $expand), ("BIAS", $bias), ("ADD", $add), ("DROP", $drop), ("UNITS", $units),
            ],
            parts: &[
                parts::PRODUCT, parts::GRID, parts::HALF, $(parts::$part),+,
                parts::RANDOM, parts::DROPOUT, parts::SLOTS,
            ],
            backends: $backends,
            workgroup_bytes: $bytes,
        }
    };
}
macro_rules! variants {
    ($bytes:expr) => {{
        macro_rules! frozen {
            ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
                variant!(concat!($name, " frozen"), [8 1 64], 1 0 1 0 0 0, PORTABLE, $bytes, [READ4, $load4])
            };
        }
        macro_rules! forward {
            ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
                variant!(concat!($name, " forward"), [8 1 64], 1 1 0 0 0 1, PORTABLE, $bytes, [READ4, $load4])
            };
        }
        macro_rules! backward {
            ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
                variant!(
                    concat!($name, " backward"), [8 1 64], 0 1 0 1 1 1, PORTABLE, $bytes,
                    [READ4_ANY, $load, LOAD4_ANY]
                )
            };
        }
        &each_format!(frozen, forward, backward)
    }};
}
macro_rules! ahead {
    ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
        variant!(
            concat!($name, " forward"), [8 1 64], 1 1 0 0 0 1, PORTABLE, TILE_BYTES,
            [READ4, $load4, PRODUCT_AHEAD]
        )
    };
}
macro_rules! ahead_backward {
    ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
        variant!(
            concat!($name, " backward"), [8 1 64], 0 1 0 1 1 1, PORTABLE, TILE_BYTES,
            [READ4, $load4, PRODUCT_AHEAD]
        )
    };
}
macro_rules! streamed {
    ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
        variant!(
            concat!($name, " frozen"), [8 1 64], 1 0 1 0 0 0, PORTABLE, VECTOR_BYTES,
            [READ4, $load4, WORDS4, PIECE, $piece, PRODUCT_STREAM]
        )
    };
}
macro_rules! streamed_update {
    ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
        variant!(
            concat!($name, " forward"), [8 1 64], 1 1 0 0 0 1, PORTABLE, VECTOR_BYTES,
            [READ4, $load4, WORDS4_ANY, PIECE, $piece, PRODUCT_STREAM]
        )
    };
}
macro_rules! coop_16 {
    ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
        variant!(
            concat!($name, " coop 16"), [8 4 256], 1 1 0 0 0 1, COOP_16, COOP_BYTES,
            [READ4, $load4, COOP_16, PRODUCT_COOP]
        )
    };
}
macro_rules! coop_8 {
    ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
        variant!(
            concat!($name, " coop 8"), [4 2 32], 1 0 1 0 0 0, COOP_8, COOP_BYTES,
            [READ4_ANY, $load, LOAD4_ANY, COOP_8, PRODUCT_COOP]
        )
    };
}

params! {
    struct Params {
        m: u32, n: u32, k: u32, groups: u32, a_stride: u32, a_first: u32, w_first: u32, w_words: u32, y_stride: u32,
        y_first: u32, scale: f32, u_stride: u32, u_first: u32, slots: u32, s_base: u32, s_step: u32,
        s_k: u32, s_block: u32, s_pool_rows: u32, key0: u32, key1: u32, drop_p: f32, keep: f32,
    }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../../shaders/fused_ba_matmul.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "direct", variants: variants!(0) },
        Entry { name: "tile", variants: variants!(TILE_BYTES) },
        Entry { name: "vector", variants: variants!(VECTOR_BYTES) },
        Entry { name: "stream", variants: &each_format!(streamed, streamed_update) },
        Entry { name: "ahead", variants: &each_format!(ahead, ahead_backward) },
        Entry { name: "coop", variants: &each_format!(coop_16, coop_8) },
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
    /// What to use on a GPU instead of the chosen one.
    pub variant: Option<Tiling>,
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

operands! {
    pub(crate) struct In { x; u, pool }
}

impl<'a> In<'a> {
    /// Of a product without an update.
    pub fn product(x: &'a Tensor) -> Self {
        In { x, u: None, pool: None }
    }
    /// Of a product with an update of rows of `pool`.
    pub fn update(x: &'a Tensor, u: &'a Tensor, pool: &'a Tensor) -> Self {
        In { x, u: Some(u), pool: Some(pool) }
    }
}

impl Op for FusedBa<'_> {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, operands: &In<'_>) -> Result<[Meta; 1]> {
        operands.require(NAME, DType::F32)?;
        let input = operands.x;
        if input.shape().last() != self.inputs() {
            let n = self.outputs();
            let k = self.inputs();
            return Err(Error::shape(
                NAME,
                format!("rows for a linear from {k} to {n} values"),
                input.shape(),
            ));
        }
        if !self.w.device().same(input.device()) {
            return Err(Error::shape(
                NAME,
                format!("an input on '{}', where the weight is", self.w.device().name()),
                format!("'{}'", input.device().name()),
            ));
        }
        if let Some(b) = self.bias
            && b.dims() != [self.outputs()]
        {
            return Err(Error::shape(NAME, format!("a bias of {} outputs", self.outputs()), b.shape()));
        }
        if let (Some(e), Some(u), Some(pool)) = (&self.expand, operands.u, operands.pool) {
            e.slots.check(NAME, input.shape().rows(), pool)?;
            if u.dims() != [input.shape().rows(), e.slots.all_columns()]
                || pool.shape().last() != self.outputs()
            {
                let n = self.outputs();
                let w = e.slots.all_columns();
                return Err(Error::shape(
                    NAME,
                    format!("u and a pool for {w} slots and {n} outputs"),
                    format!("u {} and pool {}", u.shape(), pool.shape()),
                ));
            }
        }
        Ok([Meta { shape: input.shape().with_last(self.outputs())?, dtype: DType::F32 }])
    }

    fn reference(&self, &In { x, u, pool }: &In<'_>, [y]: [&mut Host; 1]) {
        let k = self.inputs();
        let n = self.outputs();
        let old = if self.add { y.f64().to_vec() } else { vec![0.0; y.f64().len()] };
        for (m, y) in y.f64_mut().chunks_mut(n.max(1)).enumerate() {
            let row = &x.f64()[m * k..(m + 1) * k];
            y.copy_from_slice(&old[m * n..(m + 1) * n]);
            for shard in self.w.shards() {
                for (i, w) in shard.data.f64().chunks(self.w.cols().max(1)).enumerate() {
                    let i = shard.first + i;
                    if self.nt {
                        y[i] += row.iter().zip(w).map(|(a, b)| a * b).sum::<f64>()
                    } else {
                        y.iter_mut().zip(w).for_each(|(y, w)| *y += row[i] * w)
                    }
                }
            }
            if let Some(b) = self.bias {
                y.iter_mut().zip(b.f64()).for_each(|(y, b)| *y += b);
            }
            if let (Some(e), Some(u), Some(pool)) = (&self.expand, u, pool) {
                let u = u.f64();
                let pool = pool.f64();
                let view = e.slots.view();
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

    fn cpu(&self, &In { x, u, pool }: &In<'_>, [y]: [&mut Host; 1]) {
        let expand = match (self.expand, u, pool) {
            (Some(expand), Some(u), Some(pool)) => Some((expand, u.f32(), pool.f32())),
            _ => None,
        };
        let joins = cpu::Joins { bias: self.bias.map(|b| b.f32()), expand };
        self.cpu_product(x.f32(), y.f32_mut(), x.shape().rows(), joins);
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let mut first = true;
        let shards = self.w.shards();
        for (i, shard) in shards.iter().enumerate() {
            // Over several shards the forward product writes column ranges and the backward product adds up.
            let add = self.add || (!self.nt && !first);
            let expand = self.expand.filter(|_| self.nt || i + 1 == shards.len());
            self.shard(gpu, x, &y[0], shard, add, expand)?;
            first = false;
        }
        Ok(())
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

    fn linear_as(&self, w: &Weight, bias: Option<&Tensor>, variant: Option<Tiling>) -> Result<Tensor> {
        let y = run1(&FusedBa { variant, ..FusedBa::forward(w, bias, None) }, In::product(self))?;
        let w = w.clone();
        Ok(Node::record("linear", &[self], y, move |dy| {
            let op = FusedBa { variant, ..FusedBa::backward(&w, None, false) };
            Ok(vec![Some(run1(&op, In::product(&dy))?)])
        }))
    }
}
