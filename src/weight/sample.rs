//! Made-up weights as they stand in files, for the cases of ops.

use super::Format;
use crate::rng::Stream;
use half::f16;

/// `[rows, cols]` of values around zero: random quants, scales that make them about as large as a layer's weights.
/// `cols` is a multiple of the block length.
pub(crate) fn sample(format: Format, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let count = rows * cols;
    let Some(l) = format.layout() else {
        let values = Stream::new(seed).named("weight").normal_vec(count, 1.0);
        let mut bytes = vec![0; count * format.block_bytes()];
        format.encode(&values, &mut bytes);
        return bytes;
    };
    let stream = Stream::new(seed).named("quants");
    let blocks = count / l.block;
    let mut bytes: Vec<u8> = (0..(blocks * l.bytes) as u32).map(|i| stream.bits(i) as u8).collect();
    // Scale and minimum: with these, values have a mean near zero and a deviation near one.
    let (scale, minimum) = match format {
        Format::Q8_0 => (0.013, 0.0),
        Format::Q4_0 => (0.2, 0.0),
        Format::Q4_1 => (0.2, -1.5),
        Format::Q5_0 => (0.1, 0.0),
        Format::Q5_1 => (0.1, -1.5),
        Format::Q4_K => (0.006, 0.045),
        Format::Q5_K => (0.003, 0.045),
        _ => (0.000_7, 0.0),
    };
    let first = if format == Format::Q6_K { 208 } else { 0 };
    for (b, block) in bytes.chunks_exact_mut(l.bytes).enumerate() {
        let vary = 1.0 + (stream.bits(b as u32) >> 24) as f32 / 512.0;
        block[first..first + 2].copy_from_slice(&f16::from_f32(scale * vary).to_le_bytes());
        if minimum != 0.0 {
            block[2..4].copy_from_slice(&f16::from_f32(minimum * vary).to_le_bytes());
        }
    }
    bytes
}
