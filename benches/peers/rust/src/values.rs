//! Values that every side makes for itself, the same ones.

/// `n` values evenly in `-scale .. scale`, scattered bits of their index and a seed.
pub fn values(seed: u32, n: usize, scale: f32) -> Vec<f32> {
    (0..n as u32).map(|i| ((scattered(seed, i) >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale).collect()
}

/// `n` tokens of a vocabulary.
pub fn tokens(seed: u32, n: usize, vocab: usize) -> Vec<u32> {
    (0..n as u32).map(|i| scattered(seed, i) % vocab as u32).collect()
}

fn scattered(seed: u32, i: u32) -> u32 {
    let mut v = i.wrapping_add(seed.wrapping_mul(0x9e37_79b9));
    for factor in [0x7feb_352d, 0x846c_a68b] {
        v = (v ^ (v >> 16)).wrapping_mul(factor);
    }
    v ^ (v >> 16)
}

/// A few values of a result, the last one with them.
pub fn sample(values: &[f32]) -> Vec<f32> {
    (1..=8).map(|i| values[values.len() * i / 8 - 1]).collect()
}
