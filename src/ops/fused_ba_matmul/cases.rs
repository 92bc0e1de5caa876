//! The cases of the frozen product, and of the fused update with each kernel. The update with the chosen one is
//! checked through `mixture_linears`.

use super::{Expand, FusedBa, In};
use crate::engine::product::{STREAM_M1, TILE, TILINGS, Tiling};
use crate::engine::{Case, Computation, Operand, Timed, TimedSizes, run1};
use crate::routing::{Selection, Units};
use crate::weight::sample;
use crate::{Device, Format, Result, Stream, Tensor, Weight};

/// `[m, k] -> n` with the weight in two shards.
fn case(format: Format, variant: Option<Tiling>, (m, k, n): (usize, usize, usize)) -> Option<Case> {
    let Operand::Values { data: b, .. } = Operand::normal("bias", &[n]) else { return None };
    let bytes = sample(format, n, k, 2);
    let shard_bytes = 4 * (format.row_words(k) * n.div_ceil(2).max(1)) as u64;
    let label = format!("{m}x{k}x{n} {} {}", format.name(), variant.map_or("chosen", |t| t.name));
    let run = move |x: &[Tensor]| {
        let d = x[0].device();
        let w = Weight::from_bytes(d, [n, k], &bytes, format).shard_bytes(shard_bytes).build()?;
        let b = Tensor::from_f32(d, &[n], &b)?;
        Ok(vec![x[0].linear_as(&w, Some(&b), variant)?])
    };
    let weight = 4 * n * format.row_words(k);
    let mut case = Case::new(label, vec![Operand::normal("x", &[m, k])], run).sums(k.max(n));
    // The reference has no variants.
    case.gradcheck &= variant.is_none();
    Some(case.cost(2 * m * k * n, 4 * (m * k + m * n) + weight))
}

/// `y = x W^T + bias + s sum u b` and `dx = dy W + s sum v a` with one kernel. Tiles have edges on all sides; rows are whole vectors,
/// which compiles fast: `matmul` has every kernel with odd rows.
fn fused(tiling: Tiling) -> Case {
    let m = 21;
    let (k, n) = if tiling.entry == "ahead" { (80, 48) } else { (68, 44) };
    let slots = 3;
    let factors = 5;
    let shapes = [("x", [m, k]), ("dy", [m, n]), ("u", [m, slots]), ("a", [factors, k]), ("b", [factors, n])];
    let inputs = shapes.iter().map(|(name, dims)| Operand::normal(name, dims).frozen()).collect();
    let w = Stream::new(1).named("w").normal_vec(n * k, 1.0);
    let run = move |x: &[Tensor]| {
        let device = x[0].device();
        let w = Weight::new(device, n, k, &w, Format::F32)?;
        let bias = Tensor::full(device, &[n], 0.5)?;
        let units = Units::ranges(device, &[0, 4, m], &vec![1.0; m])?;
        let idx = Tensor::from_u32(device, &[1, 1, 2, slots], &[0, 4, 2, 3, 1, 0])?;
        let selection = Selection::new(idx, None, &units, factors, 1)?;
        let slots = selection.slots_b(0);
        let expand = Some(Expand { slots: &slots, scale: 0.5, dropout: None });
        let with = |op: FusedBa<'_>, x: In<'_>| run1(&FusedBa { variant: Some(tiling), ..op }, x);
        let y = with(FusedBa::forward(&w, Some(&bias), expand), In::update(&x[0], &x[2], &x[4]))?;
        let dx = with(FusedBa::backward(&w, expand, false), In::update(&x[1], &x[2], &x[3]))?;
        Ok(vec![y, dx])
    };
    Case::new(format!("{m}x{k}x{n} with update, {}", tiling.name), inputs, run)
        .sums(k)
        .cost(4 * m * k * n, 4 * (2 * n * k + 2 * m * (k + n) + m * slots + factors * (k + n)))
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
        // The kernels that the test machine's adapter does not choose by itself, on the shape with most edges. `tile`
        // reads a format as `direct` does.
        let shape = shapes.iter().rfind(|s| s.0 <= 1000).copied();
        let forced = if format == Format::Q4_K { &[TILE, STREAM_M1][..] } else { &[STREAM_M1] };
        all.extend(forced.iter().filter_map(|&t| case(format, Some(t), shape?)));
    }
    all.extend(TILINGS.into_iter().map(fused));
    all
}

pub(super) fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let product = |[m, n, k]: [usize; 3], format: Format| {
        // Blocks are along K.
        let k = k.next_multiple_of(format.block_len());
        let weight = 4 * n * format.row_words(k);
        let flops = 2 * m * n * k;
        let bytes = 4 * (m * k + m * n) + weight;
        let make = move |device: &Device| -> Result<Computation> {
            let w = Weight::from_bytes(device, [n, k], &sample(format, n, k, 2), format).build()?;
            Ok(Box::new(move |x| Ok(vec![x[0].linear(&w, None)?])))
        };
        let inputs = vec![Operand::normal("x", &[m, k])];
        let timed = Timed::new(format!("{m}x{n}x{k}"), inputs, (flops, bytes), make);
        timed.dtype(format.name()).sums(n.max(k)).backward(flops, bytes)
    };
    let all = sizes.products().flat_map(|s| sizes.formats.iter().map(move |&format| (s, format)));
    all.map(|(s, format)| product(s, format)).collect()
}
