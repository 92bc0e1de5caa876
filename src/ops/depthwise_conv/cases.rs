//! Cases: windows and steps of the towers, odd sides, windows that are larger than the picture, and pictures without
//! pixels.

use super::window::Windows;
use crate::engine::{Case, Operand, Timed, TimedSizes};

/// Pictures `[B, h, w, D]` and weights `[k, k, D]`.
fn operands([b, height, width, d]: [usize; 4], k: usize) -> Vec<Operand> {
    let x = Operand::normal("x", &[b, height, width, d]).frozen();
    vec![x, Operand::normal("w", &[k, k, d]).frozen()]
}

/// FLOP and least bytes of a depthwise convolution.
fn costs([b, height, width, d]: [usize; 4], windows: Windows) -> (usize, usize) {
    let n = b * windows.count(height) * windows.count(width) * d;
    let k2 = windows.k * windows.k;
    (2 * n * k2, 4 * (b * height * width * d + k2 * d + n))
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (dims, k, stride) in [
        ([0, 4, 4, 3], 3, 1),
        ([1, 1, 1, 1], 1, 1),
        ([1, 1, 1, 5], 7, 1),
        ([2, 5, 3, 4], 3, 1),
        ([2, 7, 9, 33], 3, 2),
        ([1, 8, 8, 48], 5, 2),
        ([1, 6, 7, 20], 5, 1),
        ([1, 5, 4, 2], 1, 3),
        ([3, 40, 32, 96], 3, 2),
    ] {
        let windows = Windows { k, stride };
        let (flops, bytes) = costs(dims, windows);
        let run = move |x: &[crate::Tensor]| Ok(vec![x[0].depthwise_conv(&x[1], stride)?]);
        let label = format!("{dims:?} {k}x{k} step {stride}");
        all.push(Case::new(label, operands(dims, k), run).sums(k * k).cost(flops, bytes));
    }
    for (dims, k, stride) in [
        ([0, 3, 4, 4], 3, 2),
        ([1, 1, 1, 1], 1, 1),
        ([2, 3, 5, 4], 3, 2),
        ([1, 2, 1, 3], 5, 1),
        ([2, 3, 64, 96], 3, 2),
    ] {
        let [b, d, height, width] = dims;
        let windows = Windows { k, stride };
        let values = b * windows.count(height) * windows.count(width) * d * k * k;
        let x = vec![Operand::normal("x", &dims).frozen()];
        let run = move |x: &[crate::Tensor]| Ok(vec![x[0].windows(k, stride)?]);
        let label = format!("windows {dims:?} {k}x{k} step {stride}");
        all.push(Case::new(label, x, run).cost(0, 4 * (b * d * height * width + values)));
    }
    all
}

pub(super) fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    // The two largest layers of EfficientNet-Lite0 at 128 pixels, for as many pictures as fill the cores.
    let b = sizes.pick(1, 16);
    let dims = sizes.pick([b, 9, 9, 33], [b, 64, 64, 96]);
    let wide = sizes.pick([b, 9, 9, 33], [b, 8, 8, 672]);
    let timed = |[b, height, width, d]: [usize; 4], k: usize, stride: usize| {
        let dims = [b, height, width, d];
        let label = format!("{b}x{height}x{width}x{d} {k}x{k} step {stride}");
        let costs = costs(dims, Windows { k, stride });
        Timed::new(label, operands(dims, k), costs, move |_| {
            Ok(Box::new(move |x| Ok(vec![x[0].depthwise_conv(&x[1], stride)?])))
        })
        .sums(k * k)
    };
    vec![timed(dims, 3, 2), timed(wide, 5, 1)]
}
