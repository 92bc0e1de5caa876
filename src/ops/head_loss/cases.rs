//! Cases: every format and kernel, shards, positions without loss, and capped logits.

use super::{HeadLoss, NONE};
use crate::engine::product::{AHEAD, DIRECT, STREAM_M1, TILE, Tiling};
use crate::engine::{Case, Computation, Operand, Timed, TimedSizes};
use crate::rng::Stream;
use crate::weight::{Format, Weight, sample};
use crate::{Device, Result};

/// Targets cycle through the vocabulary; every `skip`-th position has no loss.
fn case([r, d, v]: [usize; 3], skip: usize, format: Format, shard: u64, force: Option<Tiling>) -> Case {
    capped([r, d, v], skip, format, shard, force, None)
}

fn capped(
    [r, d, v]: [usize; 3],
    skip: usize,
    format: Format,
    shard: u64,
    force: Option<Tiling>,
    softcap: Option<f32>,
) -> Case {
    let targets = (0..r).map(|i| if i % skip == skip - 1 { NONE } else { (i * 7 % v) as u32 }).collect();
    let inputs = vec![Operand::normal("h", &[r, d]), Operand::indices(&[r], targets)];
    // Blocks have values of about 1 instead, which makes the softmax sharper.
    let values = match format.block_len() {
        1 => Stream::new(3).named("head").normal_vec(v * d, 2.0 / (d.max(1) as f32).sqrt()),
        _ => vec![],
    };
    let blocks = if values.is_empty() { sample(format, v, d, 3) } else { vec![] };
    let how = force.map_or(String::new(), |f| format!(" {}", f.name));
    let cap = softcap.map_or(String::new(), |cap| format!(" cap {cap}"));
    let label = format!("R{r} D{d} V{v} {} shards of {shard} B, skip {skip}{how}{cap}", format.name());
    Case::new(label, inputs, move |x| {
        let device = x[0].device();
        let weight = match format.block_len() {
            1 => Weight::from_values(device, [v, d], &values).store_as(format).shard_bytes(shard).build()?,
            _ => Weight::from_bytes(device, [v, d], &blocks, format).shard_bytes(shard).build()?,
        };
        Ok(vec![HeadLoss { weight, gradient: false, softcap, force }.record(&x[0], &x[1])?])
    })
    .sums(d.max(v).max(r))
    .cost(4 * r * v * d, 4 * (2 * r * d + v * d))
}

pub(super) fn cases() -> Vec<Case> {
    let whole = 1 << 26;
    let mut all = vec![
        case([0, 3, 5], 2, Format::F32, whole, None),
        // No position has a loss.
        case([3, 2, 5], 1, Format::F32, whole, None),
        case([1, 1, 1], 2, Format::F32, whole, None).floor(1.0),
        case([5, 3, 7], 3, Format::F32, whole, None),
        case([7, 5, 33], 4, Format::F16, 100, None),
        case([7, 5, 33], 4, Format::Bf16, 100, None),
        case([67, 33, 130], 2, Format::F32, 6000, None),
        case([40, 64, 2500], 3, Format::F16, whole, None),
        case([1100, 7, 4100], 2, Format::F32, whole, None),
        case([70_000, 2, 3], 5, Format::F32, whole, None),
        capped([5, 3, 7], 3, Format::F32, whole, None, Some(1.5)),
        capped([7, 5, 33], 4, Format::Bf16, 100, Some(TILE), Some(0.8)),
        capped([40, 64, 2500], 3, Format::F16, whole, None, Some(2.0)),
        capped([67, 33, 130], 2, Format::F32, 6000, Some(DIRECT), Some(30.0)),
    ];
    let mut frozen = case([9, 6, 50], 2, Format::F32, 500, None);
    frozen.inputs = frozen.inputs.into_iter().map(Operand::frozen).collect();
    frozen.label += " loss only";
    all.push(frozen);
    for format in Format::ALL {
        let (d, shard) = match format.block_len() {
            1 => (35, 8000),
            block => (block, 60 * 4 * format.row_words(block) as u64),
        };
        all.push(case([70, d, 150], 3, format, shard, Some(DIRECT)));
    }
    for (tiling, format, d) in
        [(TILE, Format::F32, 35), (TILE, Format::Q6_K, 256), (STREAM_M1, Format::Q4_K, 256)]
    {
        all.push(case([70, d, 150], 3, format, 60 * 4 * format.row_words(d) as u64, Some(tiling)));
    }
    // `ahead` takes whole steps of 16 alone, of hidden values and of a shard's rows.
    all.push(case([70, 48, 160], 3, Format::F32, 64 * 4 * 48, Some(AHEAD)));
    all
}

pub(super) fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [r, d, v] = sizes.pick([33, 64, 500], [256, 576, 8192]);
    let targets = Operand::indices(&[r], (0..r).map(|i| (i * 7 % v) as u32).collect());
    let make = move |device: &Device| -> Result<Computation> {
        let values = Stream::new(3).named("head").normal_vec(v * d, 0.05);
        let w = Weight::new(device, v, d, &values, Format::F32)?;
        Ok(Box::new(move |x| Ok(vec![x[0].head_loss(&w, &x[1], None)?])))
    };
    // The gradient of the hidden states is made on the way.
    let costs = (4 * r * v * d, 4 * (2 * r * d + v * d));
    let inputs = vec![Operand::normal("h", &[r, d]), targets];
    vec![Timed::new(format!("{r}x{d} of {v}"), inputs, costs, make).sums(r.max(d).max(v))]
}
