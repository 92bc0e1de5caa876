//! Depthwise convolution of pictures whose channels lie last (Howard et al. 2017, arXiv:1704.04861), and the windows of
//! pictures as rows, with which a dense convolution is a product. For frozen towers: forward alone.

mod cases;
mod patches;
mod window;

use window::Windows;

use crate::device::{Entry, Gpu, Host, Shader, params};
use crate::engine::launch::{ELEMENTS, Kernel, WG, binds};
use crate::engine::{Meta, Op, OpSpec, Operands, operands, rows_in_parallel, run1};
use crate::simd::{LANES, Set, mul_add, vectorised};
use crate::{DType, Error, Result, Tensor};
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "depthwise_conv",
    formula: "y[u,v,c] = sum_ij x[s u + i - top, s v + j - left, c] w[i,j,c]; windows as rows",
    shaders: &[&SHADER],
    cases: cases::cases,
    timed: cases::timed,
};

const NAME: &str = "depthwise_conv";

params! {
    struct Params {
        n: u32,
        d: u32,
        height: u32,
        width: u32,
        rows: u32,
        columns: u32,
        k: u32,
        stride: u32,
        top: u32,
        left: u32,
    }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../../shaders/depthwise_conv.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "depthwise", variants: ELEMENTS },
        Entry { name: "patches", variants: ELEMENTS },
    ],
};

impl Windows {
    fn params(self, n: usize, d: usize, [height, width]: [usize; 2]) -> Params {
        let number = |n: usize| n as u32;
        Params {
            n: number(n),
            d: number(d),
            height: number(height),
            width: number(width),
            rows: number(self.count(height)),
            columns: number(self.count(width)),
            k: number(self.k),
            stride: number(self.stride),
            top: number(self.before(height)),
            left: number(self.before(width)),
        }
    }
}

/// `(x [B,h,w,D], w [k,k,D]) -> [B,ceil(h/s),ceil(w/s),D]`
struct Depthwise(Windows);

operands! {
    struct In { x, w }
}

/// `[B, h, w, D]`, which `infer` has seen to be four.
fn four(x: &Tensor) -> [usize; 4] {
    let dims = x.dims();
    std::array::from_fn(|axis| dims.get(axis).copied().unwrap_or(0))
}

impl Op for Depthwise {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, input: &In<'_>) -> Result<[Meta; 1]> {
        input.require(NAME, DType::F32)?;
        let &In { x, w } = input;
        let Windows { k, .. } = self.0;
        self.0.check(NAME)?;
        let [b, height, width, d] = *x.dims() else {
            return Err(Error::shape(NAME, "pictures [B, h, w, D]", x.shape()));
        };
        if w.dims() != [k, k, d] {
            return Err(Error::shape(NAME, format!("a weight [{k}, {k}, {d}] for {}", x.shape()), w.shape()));
        }
        Ok([Meta::f32(&[b, self.0.count(height), self.0.count(width), d])?])
    }

    fn reference(&self, &In { x, w }: &In<'_>, [y]: [&mut Host; 1]) {
        let [_, height, width, d] = four(x);
        let Windows { k, stride } = self.0;
        let rows = self.0.count(height);
        let columns = self.0.count(width);
        let inside = |at: usize, before: usize, side: usize| at.checked_sub(before).filter(|&at| at < side);
        for (at, y) in y.f64_mut().iter_mut().enumerate() {
            let c = at % d;
            let v = at / d % columns;
            let u = at / d / columns % rows;
            let b = at / d / columns / rows;
            *y = 0.0;
            for i in 0..k {
                let Some(row) = inside(u * stride + i, self.0.before(height), height) else { continue };
                for j in 0..k {
                    let Some(column) = inside(v * stride + j, self.0.before(width), width) else { continue };
                    let pixel = (b * height + row) * width + column;
                    *y += x.f64()[pixel * d + c] * w.f64()[(i * k + j) * d + c];
                }
            }
        }
    }

    fn cpu(&self, &In { x, w }: &In<'_>, [y]: [&mut Host; 1]) {
        let [_, height, width, d] = four(x);
        let rows = self.0.count(height);
        let columns = self.0.count(width);
        let x = x.f32();
        let w = w.f32();
        rows_in_parallel(y.f32_mut(), columns * d, |row, y| {
            let picture = &x[row / rows * height * width * d..][..height * width * d];
            line(self.0, picture, width, w, row % rows, y);
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let [_, height, width, d] = four(x.x);
        let n = y[0].len();
        let params = self.0.params(n, d, [height, width]);
        let kernel = Kernel { shader: &SHADER, entry: "depthwise", variant: &ELEMENTS[0] };
        kernel.run(gpu, &binds(x, y), &params, n.div_ceil(WG), 2 * n * self.0.k * self.0.k)
    }
}

vectorised! {
    /// One row of windows of one picture.
    fn line(simd: _, windows: Windows, picture: &[f32], width: usize, w: &[f32], u: usize, y: &mut [f32]) {
        let columns = windows.count(width);
        let d = y.len() / columns;
        let (i, row) = windows.covered(u, picture.len() / (width * d));
        let mut pixels: Vec<&[f32]> = Vec::with_capacity(windows.k * windows.k);
        let mut weights: Vec<&[f32]> = Vec::with_capacity(windows.k * windows.k);
        for (v, y) in y.chunks_mut(d).enumerate() {
            let (j, column) = windows.covered(v, width);
            pixels.clear();
            weights.clear();
            for (row, i) in (row..).zip(i.clone()) {
                for (column, j) in (column..).zip(j.clone()) {
                    pixels.push(&picture[(row * width + column) * d..][..d]);
                    weights.push(&w[(i * windows.k + j) * d..][..d]);
                }
            }
            products(simd, &pixels, &weights, y);
        }
    }
}

/// `y = sum_t x[t] w[t]`, element by element. Every row is as long as `y`.
#[inline(always)]
fn products<S: Set>(simd: S, x: &[&[f32]], w: &[&[f32]], y: &mut [f32]) {
    let (lanes, tail) = y.as_chunks_mut::<LANES>();
    let whole = lanes.len() * LANES;
    for (q, y) in lanes.iter_mut().enumerate() {
        let mut sum = simd.zeros();
        for (x, w) in x.iter().zip(w) {
            sum = simd.mul_add(simd.load(&x.as_chunks().0[q]), simd.load(&w.as_chunks().0[q]), sum);
        }
        simd.store(sum, y);
    }
    for (at, y) in (whole..).zip(tail) {
        *y = x.iter().zip(w).fold(0.0, |sum, (x, w)| mul_add(simd, x[at], w[at], sum));
    }
}

impl Tensor {
    /// The depthwise convolution of pictures whose channels lie last: `[B, h, w, D]` with weights `[k, k, D]` to
    /// `[B, ceil(h / stride), ceil(w / stride), D]`,
    ///
    /// ```text
    /// y[b,u,v,c] = sum_ij x[b, stride u + i - top, stride v + j - left, c] weight[i,j,c]
    /// ```
    ///
    /// Pixels outside of the picture are 0. This is TensorFlow's padding "same": of the `max((ceil(n / stride) - 1) stride +
    /// k - n, 0)` zeros along a side of n pixels the smaller half lies before it (`top`, `left`). There is no derivative:
    /// the towers that have such layers are frozen.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let cpu = Device::cpu();
    /// // One row of four pixels, one channel; a window of 3 x 3 that sums what it covers.
    /// let x = Tensor::from_f32(&cpu, &[1, 1, 4, 1], &[1.0, 2.0, 3.0, 4.0])?;
    /// let ones = Tensor::full(&cpu, &[3, 3, 1], 1.0)?;
    /// assert_eq!(x.depthwise_conv(&ones, 1)?.to_f32()?, [3.0, 6.0, 9.0, 7.0]);
    /// assert_eq!(x.depthwise_conv(&ones, 2)?.to_f32()?, [6.0, 7.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// Shapes do not fit, a step is 0, or the tensors are on different devices.
    pub fn depthwise_conv(&self, weight: &Tensor, stride: usize) -> Result<Tensor> {
        let k = weight.dims().first().copied().unwrap_or(0);
        run1(&Depthwise(Windows { k, stride }), In { x: self, w: weight })
    }
}
