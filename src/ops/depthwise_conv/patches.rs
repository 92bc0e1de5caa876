//! Windows of pictures as rows: a dense convolution is their product with its weights.

use super::{NAME, SHADER, Windows, four};
use crate::device::{Gpu, Host};
use crate::engine::launch::{ELEMENTS, Kernel, WG, binds};
use crate::engine::{Meta, Op, Operands, operands, rows_in_parallel, run1};
use crate::{DType, Error, Result, Tensor};
use std::sync::Arc;

/// `[B,D,h,w] -> [B,ceil(h/s),ceil(w/s),D k k]`
struct Patches(Windows);

operands! {
    struct In { x }
}

impl Patches {
    /// The window of a number: calls `put(at, pixel)` for every value that lies in the picture.
    fn window(&self, number: usize, [d, height, width]: [usize; 3], mut put: impl FnMut(usize, usize)) {
        let columns = self.0.count(width);
        let rows = self.0.count(height);
        let k = self.0.k;
        let picture = number / columns / rows;
        let (i, row) = self.0.covered(number / columns % rows, height);
        let (j, column) = self.0.covered(number % columns, width);
        for c in 0..d {
            for (row, i) in (row..).zip(i.clone()) {
                for (column, j) in (column..).zip(j.clone()) {
                    put((c * k + i) * k + j, ((picture * d + c) * height + row) * width + column);
                }
            }
        }
    }
}

impl Op for Patches {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, input: &In<'_>) -> Result<[Meta; 1]> {
        input.require(NAME, DType::F32)?;
        self.0.check(NAME)?;
        let [b, d, height, width] = *input.x.dims() else {
            return Err(Error::shape(NAME, "pictures [B, D, h, w]", input.x.shape()));
        };
        let values = d.saturating_mul(self.0.k * self.0.k);
        Ok([Meta::f32(&[b, self.0.count(height), self.0.count(width), values])?])
    }

    fn reference(&self, &In { x }: &In<'_>, [y]: [&mut Host; 1]) {
        let [_, d, height, width] = four(x);
        let x = x.f64();
        for (number, y) in y.f64_mut().chunks_mut((d * self.0.k * self.0.k).max(1)).enumerate() {
            y.fill(0.0);
            self.window(number, [d, height, width], |at, pixel| y[at] = x[pixel]);
        }
    }

    fn cpu(&self, &In { x }: &In<'_>, [y]: [&mut Host; 1]) {
        let [_, d, height, width] = four(x);
        let x = x.f32();
        rows_in_parallel(y.f32_mut(), d * self.0.k * self.0.k, |number, y| {
            y.fill(0.0);
            self.window(number, [d, height, width], |at, pixel| y[at] = x[pixel]);
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let [_, d, height, width] = four(x.x);
        let n = y[0].len();
        let params = self.0.params(n, d, [height, width]);
        let kernel = Kernel { shader: &SHADER, entry: "patches", variant: &ELEMENTS[0] };
        kernel.run(gpu, &binds(x, y), &params, n.div_ceil(WG), n)
    }
}

impl Tensor {
    /// The windows of `k x k` pixels of pictures `[B, D, h, w]`, as rows: `[B, ceil(h / stride), ceil(w / stride), D k k]`,
    /// each in the order channel, row, column. Padding as in [`depthwise_conv`](Tensor::depthwise_conv).
    ///
    /// A convolution whose weight is `[N, D, k, k]` is their product with it: `windows(k, stride)? . W^T`, and its channels
    /// lie last. There is no derivative.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let x = Tensor::from_f32(&Device::cpu(), &[1, 1, 2, 2], &[1.0, 2.0, 3.0, 4.0])?;
    /// assert_eq!(x.windows(2, 1)?.to_f32()?[..8], [1.0, 2.0, 3.0, 4.0, 2.0, 0.0, 4.0, 0.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The tensor has not four axes, or `k` or `stride` is 0.
    pub fn windows(&self, k: usize, stride: usize) -> Result<Tensor> {
        run1(&Patches(Windows { k, stride }), In { x: self })
    }
}
