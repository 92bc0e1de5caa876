//! The cases of the frozen product; the fused update is checked by `mixture` through `mixture_linears`.

use crate::ops::{Case, Operand};
use crate::weight::sample;
use crate::{Format, Tensor, Weight};

/// `[m, k] -> n` with the weight in two shards.
fn case(format: Format, variant: Option<&'static str>, (m, k, n): (usize, usize, usize)) -> Option<Case> {
    let Operand::Values { data: b, .. } = Operand::normal("bias", &[n]) else { return None };
    let bytes = sample(format, n, k, 2);
    let shard_bytes = 4 * (format.row_words(k) * n.div_ceil(2).max(1)) as u64;
    let label = format!("{m}x{k}x{n} {} {}", format.name(), variant.unwrap_or("chosen"));
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
    let shapes = [(0, 4, 3), (1, 1, 1), (3, 5, 7), (33, 66, 40), (70, 130, 67), (70_000, 2, 3)];
    let mut all = Vec::new();
    for format in Format::ALL {
        let shapes = match format.block_len() {
            1 => shapes.to_vec(),
            32 => vec![(0, 32, 3), (1, 32, 1), (3, 96, 7), (70, 160, 67)],
            _ => vec![(1, 256, 9), (5, 512, 7), (20, 768, 70)],
        };
        for variant in [None, Some("direct"), Some("tile")] {
            // Large shapes once per format: they cost the most and differ only in the grid.
            let shapes = shapes.iter().filter(|s| s.0 <= 1000 || variant == Some("tile"));
            all.extend(shapes.filter_map(|&s| case(format, variant, s)));
        }
    }
    all
}
