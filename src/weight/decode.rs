//! From packed words to f32, on the CPU.
//!
//! Plain loops over blocks of fixed size, which the compiler vectorises, compiled for the processor they run on. Values
//! have the same bits everywhere: nothing is contracted. The order of operations is ggml's.

use super::format::Format;
use crate::simd::vectorised;

#[cfg(target_endian = "big")]
compile_error!("packed words are read as little-endian bytes");

/// The value of an IEEE half; exact, subnormal ones included.
#[inline(always)]
pub(super) fn half(h: u32) -> f32 {
    let sign = (h & 0x8000) << 16;
    let magnitude = h & 0x7fff;
    // Exponents are moved up by 224 and back by 112: infinities and NaN survive.
    let normal = f32::from_bits((magnitude << 13) + (224 << 23)) * f32::from_bits((127 - 112) << 23);
    let small = magnitude as f32 * f32::from_bits((127 - 24) << 23);
    let value = if magnitude < 0x400 { small } else { normal };
    f32::from_bits(value.to_bits() | sign)
}

/// Scale `b` of a row of scales that stand in pairs.
#[inline(always)]
fn single(scales: &[u32], b: usize) -> f32 {
    half(scales[b / 2] >> (16 * (b % 2)) & 0xffff)
}
/// Scale and minimum in one word.
#[inline(always)]
fn both(word: u32) -> (f32, f32) {
    (half(word & 0xffff), half(word >> 16))
}

fn bytes(words: &[u32]) -> &[u8] {
    bytemuck::cast_slice(words)
}

/// The eight 6-bit scales and minimums of a K block.
#[inline(always)]
fn scales(w: &[u32]) -> ([u8; 8], [u8; 8]) {
    let low = 0x3f3f_3f3f;
    let upper = |four: u32, two: u32| four & 0x0f0f_0f0f | two >> 2 & 0x3030_3030;
    let join = |a: u32, b: u32| (a as u64 | (b as u64) << 32).to_le_bytes();
    (join(w[0] & low, upper(w[2], w[0])), join(w[1] & low, upper(w[2] >> 4, w[1])))
}

#[inline(always)]
fn halves(words: &[u32], out: &mut [f32], value: impl Fn(u32) -> f32) {
    let (pairs, tail) = out.as_chunks_mut::<2>();
    for (o, w) in pairs.iter_mut().zip(words) {
        *o = [value(*w & 0xffff), value(*w >> 16)];
    }
    if let ([o], Some(w)) = (tail, words.last()) {
        *o = value(*w & 0xffff);
    }
}

/// Blocks whose scales are read together, so that this too is vector code.
const TOGETHER: usize = 16;

/// Keeps the compiler from taking the same element of many blocks at once, which are far apart.
#[inline(always)]
fn one_by_one() {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: no instruction.
    unsafe {
        std::arch::asm!("", options(nomem, nostack, preserves_flags))
    }
}

/// Blocks of 32 with four bits each, low ones first: `value(scale, quant, block, position in the block)`, where the
/// scales of a block are halves of a word.
#[inline(always)]
fn nibbles(
    quants: &[u32],
    out: &mut [f32],
    scale: impl Fn(usize) -> u32,
    value: impl Fn((f32, f32), u32, usize, usize) -> f32,
) {
    let (out, _) = out.as_chunks_mut::<32>();
    let (quants, _) = bytes(quants).as_chunks::<16>();
    for (group, (out, quants)) in out.chunks_mut(TOGETHER).zip(quants.chunks(TOGETHER)).enumerate() {
        let first = group * TOGETHER;
        let mut words = [0; TOGETHER];
        words.iter_mut().take(out.len()).enumerate().for_each(|(i, w)| *w = scale(first + i));
        let mut low = [0f32; TOGETHER];
        let mut high = [0f32; TOGETHER];
        for i in 0..TOGETHER {
            (low[i], high[i]) = both(words[i]);
        }
        for (i, (o, q)) in out.iter_mut().zip(quants).enumerate() {
            let s = (low[i], high[i]);
            one_by_one();
            for j in 0..16 {
                o[j] = value(s, q[j] as u32 & 15, first + i, j);
            }
            for j in 0..16 {
                o[j + 16] = value(s, q[j] as u32 >> 4, first + i, j + 16);
            }
        }
    }
}

/// The fifth bit of element `i`, in its place.
#[inline(always)]
fn fifth(high: u32, i: usize) -> u32 {
    (high >> i & 1) << 4
}

#[inline(always)]
fn q4_k(words: &[u32], out: &mut [f32]) {
    let (out, _) = out.as_chunks_mut::<256>();
    let (words, _) = words.as_chunks::<36>();
    for (o, w) in out.iter_mut().zip(words) {
        let (d, dmin) = both(w[0]);
        let (sc, mn) = scales(&w[1..4]);
        let (quants, _) = bytes(&w[4..]).as_chunks::<32>();
        for (g, (o, q)) in o.as_chunks_mut::<64>().0.iter_mut().zip(quants).enumerate() {
            let d0 = d * sc[2 * g] as f32;
            let m0 = dmin * mn[2 * g] as f32;
            let d1 = d * sc[2 * g + 1] as f32;
            let m1 = dmin * mn[2 * g + 1] as f32;
            for i in 0..32 {
                o[i] = d0 * (q[i] & 15) as f32 - m0;
                o[i + 32] = d1 * (q[i] >> 4) as f32 - m1;
            }
        }
    }
}

#[inline(always)]
fn q5_k(words: &[u32], out: &mut [f32]) {
    let (out, _) = out.as_chunks_mut::<256>();
    let (words, _) = words.as_chunks::<44>();
    for (o, w) in out.iter_mut().zip(words) {
        let (d, dmin) = both(w[0]);
        let (sc, mn) = scales(&w[1..4]);
        let (high, quants) = bytes(&w[4..]).split_at(32);
        let (quants, _) = quants.as_chunks::<32>();
        for (g, (o, q)) in o.as_chunks_mut::<64>().0.iter_mut().zip(quants).enumerate() {
            let d0 = d * sc[2 * g] as f32;
            let m0 = dmin * mn[2 * g] as f32;
            let d1 = d * sc[2 * g + 1] as f32;
            let m1 = dmin * mn[2 * g + 1] as f32;
            for i in 0..32 {
                let h = high[i] >> (2 * g);
                o[i] = d0 * (q[i] & 15 | (h & 1) << 4) as f32 - m0;
                o[i + 32] = d1 * (q[i] >> 4 | (h & 2) << 3) as f32 - m1;
            }
        }
    }
}

#[inline(always)]
fn q6_k(words: &[u32], scales: &[u32], out: &mut [f32]) {
    let (out, _) = out.as_chunks_mut::<256>();
    let (words, _) = words.as_chunks::<52>();
    for (b, (o, w)) in out.iter_mut().zip(words).enumerate() {
        let d = single(scales, b);
        let (low, rest) = bytes(w).split_at(128);
        let (high, sc) = rest.split_at(64);
        let sc: [f32; 16] = std::array::from_fn(|i| d * (sc[i] as i8) as f32);
        // Halves of 128, in which byte i has parts of elements i, i + 32, i + 64 and i + 96; 16 share a scale.
        for (h, o) in o.as_chunks_mut::<128>().0.iter_mut().enumerate() {
            for s in 0..2 {
                let near = &low[64 * h + 16 * s..][..16];
                let far = &low[64 * h + 32 + 16 * s..][..16];
                let high = &high[32 * h + 16 * s..][..16];
                let sc = &sc[8 * h + s..];
                for i in 0..16 {
                    let at = 16 * s + i;
                    let value = |low: u8, high: u8| ((low | (high & 3) << 4) as i8 - 32) as f32;
                    o[at] = sc[0] * value(near[i] & 15, high[i]);
                    o[at + 32] = sc[2] * value(far[i] & 15, high[i] >> 2);
                    o[at + 64] = sc[4] * value(near[i] >> 4, high[i] >> 4);
                    o[at + 96] = sc[6] * value(far[i] >> 4, high[i] >> 6);
                }
            }
        }
    }
}

#[inline(always)]
pub(super) fn decode_here(format: Format, words: &[u32], out: &mut [f32]) {
    let mut quants = words;
    let mut high = &[][..];
    let mut scales = &[][..];
    if let Some(l) = format.layout() {
        let blocks = out.len() / l.block;
        (quants, scales) = words.split_at(blocks * l.quants.1 / 4);
        (high, scales) = scales.split_at(blocks * l.high.1 / 4);
    }
    match format {
        Format::F32 => out.iter_mut().zip(words).for_each(|(o, w)| *o = f32::from_bits(*w)),
        Format::F16 => halves(words, out, half),
        Format::Bf16 => halves(words, out, |b| f32::from_bits(b << 16)),
        Format::Q8_0 => {
            let (quants, _) = bytes(quants).as_chunks::<32>();
            for (b, (o, q)) in out.as_chunks_mut::<32>().0.iter_mut().zip(quants).enumerate() {
                let d = single(scales, b);
                o.iter_mut().zip(q).for_each(|(o, &q)| *o = (q as i8) as f32 * d);
            }
        }
        Format::Q4_0 => {
            nibbles(
                quants,
                out,
                |b| scales[b / 2] >> (16 * (b % 2)),
                |(d, _), q, _, _| (q as i32 - 8) as f32 * d,
            );
        }
        Format::Q4_1 => nibbles(quants, out, |b| scales[b], |(d, m), q, _, _| q as i32 as f32 * d + m),
        Format::Q5_0 => nibbles(
            quants,
            out,
            |b| scales[b / 2] >> (16 * (b % 2)),
            |(d, _), q, b, i| ((q | fifth(high[b], i)) as i32 - 16) as f32 * d,
        ),
        Format::Q5_1 => nibbles(
            quants,
            out,
            |b| scales[b],
            |(d, m), q, b, i| (q | fifth(high[b], i)) as i32 as f32 * d + m,
        ),
        Format::Q4_K => q4_k(words, out),
        Format::Q5_K => q5_k(words, out),
        Format::Q6_K => q6_k(quants, scales, out),
    }
}

vectorised! {
    fn decode_row(format: Format, words: &[u32], out: &mut [f32]) {
        decode_here(format, words, out);
    }
}

impl Format {
    /// A packed row as values.
    pub(super) fn decode(self, words: &[u32], out: &mut [f32]) {
        decode_row(self, words, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_exact() {
        for bits in 0..=u16::MAX {
            let got = half(bits as u32);
            let want = half::f16::from_bits(bits).to_f32();
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{bits:04x} {got} {want}"
            );
        }
    }

    #[test]
    fn both_compilations_agree() {
        for format in Format::ALL {
            let rows = 3;
            let cols = 3 * format.block_len().max(11);
            let raw = crate::weight::sample(format, rows, cols, 5);
            for row in raw.chunks(raw.len() / rows) {
                let mut words = vec![0; format.row_words(cols)];
                format.pack(row, &mut words);
                let mut a = vec![0f32; cols];
                let mut b = vec![0f32; cols];
                format.decode(&words, &mut a);
                decode_here(format, &words, &mut b);
                assert_eq!(a, b, "{format:?}");
            }
        }
    }
}
