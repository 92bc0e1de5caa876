//! The cases of the frozen product; the fused update is checked by `mixture` through `mixture_linears`.

use crate::ops::product::{TILINGS, Tiling};
use crate::ops::{Case, Operand};
use crate::weight::sample;
use crate::{Format, Tensor, Weight};

/// `[m, k] -> n` with the weight in two shards.
fn case(format: Format, variant: Option<Tiling>, (m, k, n): (usize, usize, usize)) -> Option<Case> {
    let Operand::Values { data: b, .. } = Operand::normal("bias", &[n]) else { return None };
    let bytes = sample(format, n, k, 2);
    let shard_bytes = 4 * (format.row_words(k) * n.div_ceil(2).max(1)) as u64;
    let label = format!("{m}x{k}x{n} {} {}", format.name(), variant.map_or("chosen", |t| t.name));
    let run = move |x: &[Tensor]| {
        let d = x[0].device();
        let w = Weight::raw_sharded(d, [n, k], &bytes, format, None, shard_bytes)?;
        let b = Tensor::from_f32(d, &[n], &b)?;
        Ok(vec![x[0].linear_as(&w, Some(&b), variant)?])
    };
    let weight = 4 * n * format.row_words(k);
    let mut case = Case::new(label, vec![Operand::normal("x", &[m, k])], run).sums(k.max(n));
    // The reference has no variants.
    case.gradcheck &= variant.is_none();
    Some(case.cost(2 * m * k * n, 4 * (m * k + m * n) + weight))
}

pub(super) fn cases() -> Vec<Case> {
    let shapes =
        [(0, 4, 3), (1, 1, 1), (3, 5, 7), (33, 66, 40), (20, 132, 36), (70, 130, 67), (70_000, 2, 3)];
    let mut all = Vec::new();
    for format in Format::ALL {
        let shapes = match format.block_len() {
            1 => shapes.to_vec(),
            32 => vec![(0, 32, 3), (1, 32, 1), (3, 96, 7), (70, 160, 67)],
            _ => vec![(1, 256, 9), (5, 512, 7), (20, 768, 70)],
        };
        all.extend(shapes.iter().filter_map(|&s| case(format, None, s)));
        // The kernels that the test machine's adapter does not choose by itself, on the shape with most
        // edges; matmul has every tiling.
        let shape = shapes.iter().rfind(|s| s.0 <= 1000).copied();
        let forced = TILINGS.iter().filter(|t| ["tile", "vector m8"].contains(&t.name));
        all.extend(forced.filter_map(|&t| case(format, Some(t), shape?)));
    }
    all
}
