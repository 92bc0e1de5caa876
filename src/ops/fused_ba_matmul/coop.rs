//! When the frozen product of a forward pass uses cooperative matrices, and the test before the first use.
//!
//! Backward products never do: gradients may lie below what f16 holds.

use super::FusedBa;
use crate::device::{CoopSize, Gpu};
use crate::ops::product::{Tiling, cooperative};
use crate::ops::run;
use crate::{Device, Error, Format, Result, Tensor, Weight};
use std::sync::Arc;

impl FusedBa<'_> {
    /// The tiling with cooperative matrices, if this product may and should use it.
    pub(super) fn coop(&self, gpu: &Arc<Gpu>, m: usize, n: usize, k: usize) -> Option<Tiling> {
        // Few rows are a stream of the weight, and a small result leaves most of a tile empty.
        let pays = self.nt && m > 8 && n > 16 && k >= 16;
        let size = if pays { gpu.coop(|size| self_test(gpu, size)) } else { None };
        size.map(cooperative)
    }
}

/// A product of small integers, whose sums are exact in whatever order: anything but equal is wrong.
fn self_test(gpu: &Arc<Gpu>, size: CoopSize) -> Result<()> {
    let (m, n, k) = (69, 77, 52);
    let device = Device::Gpu(gpu.clone());
    let integers = |count: usize, step: usize| -> Vec<f32> {
        (0..count).map(|i| (i * step % 31) as f32 - 15.0).collect()
    };
    let (x, w) = (integers(m * k, 7), integers(n * k, 11));
    let weight = Weight::new(&device, n, k, &w, Format::F32)?;
    let op = FusedBa { variant: Some(cooperative(size)), ..FusedBa::forward(&weight, None, None) };
    let got = run(&op, &[&Tensor::from_f32(&device, &[m, k], &x)?])?.swap_remove(0).to_f32()?;
    let wrong = (0..m * n).filter(|&i| {
        let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
        got[i] != x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>()
    });
    match wrong.count() {
        0 => Ok(()),
        count => Err(Error::Gpu(format!("{count} of {} values differ", m * n))),
    }
}
