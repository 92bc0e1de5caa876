//! From f32 to blocks as they stand in files, on the CPU: the other direction of `decode`.
//!
//! The formats of 32 are those of ggml's reference quantisers, to the bit. The K formats are fitted: see `fit`.

use super::fit::{Fitted, fit_offset, fit_signed, sums};
use super::format::Format;
use crate::simd::vectorised;
use half::{bf16, f16};

/// Elements of a K block.
const K: usize = 256;

fn put_half(out: &mut [u8], value: f32) {
    out.copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// The value as a half holds it.
fn halved(value: f32) -> f32 {
    f16::from_f32(value).to_f32()
}

/// `1 / v`, or 0.
fn inverse(v: f32) -> f32 {
    if v == 0.0 { 0.0 } else { 1.0 / v }
}

/// The first of the elements whose size is the largest.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let size = x.iter().fold(0f32, |size, v| size.max(v.abs()));
    x.iter().copied().find(|v| v.abs() == size).unwrap_or(0.0)
}

/// Pairs of quants of four bits: element `i` is low, element `i + 16` high.
#[inline(always)]
fn put_nibbles(out: &mut [u8], quants: &[u8; 32]) {
    for (i, o) in out.iter_mut().enumerate() {
        *o = quants[i] & 15 | (quants[i + 16] & 15) << 4;
    }
}

/// The fifth bits of 32 quants.
#[inline(always)]
fn fifth_bits(quants: &[u8; 32]) -> [u8; 4] {
    let bit = |word: u32, (i, q): (usize, &u8)| word | u32::from(q >> 4 & 1) << i;
    quants.iter().enumerate().fold(0, bit).to_le_bytes()
}

/// Blocks around zero: the element of the largest size becomes `-top`, the others round to `0 .. 2 top`.
#[inline(always)]
fn around_zero(x: &[f32; 32], top: f32) -> (f32, [u8; 32]) {
    let d = largest(x) / -top;
    let id = inverse(d);
    (d, x.map(|v| ((v * id + (top + 0.5)).trunc().min(2.0 * top - 1.0)) as u8))
}

/// Blocks between their least and largest element, in steps of `0 ..= top`.
#[inline(always)]
fn between(x: &[f32; 32], top: f32) -> (f32, f32, [u8; 32]) {
    let min = x.iter().copied().fold(f32::INFINITY, f32::min);
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (max - min) / top;
    let id = inverse(d);
    (d, min, x.map(|v| ((v - min) * id + 0.5).trunc().min(top) as u8))
}

#[inline(always)]
fn block_of_32(format: Format, x: &[f32; 32], out: &mut [u8]) {
    match format {
        Format::Q8_0 => {
            let d = largest(x).abs() / 127.0;
            let id = inverse(d);
            put_half(&mut out[..2], d);
            out[2..].iter_mut().zip(x).for_each(|(o, v)| *o = (v * id).round() as i8 as u8);
        }
        Format::Q4_0 => {
            let (d, quants) = around_zero(x, 8.0);
            put_half(&mut out[..2], d);
            put_nibbles(&mut out[2..], &quants);
        }
        Format::Q5_0 => {
            let (d, quants) = around_zero(x, 16.0);
            put_half(&mut out[..2], d);
            out[2..6].copy_from_slice(&fifth_bits(&quants));
            put_nibbles(&mut out[6..], &quants);
        }
        Format::Q4_1 => {
            let (d, min, quants) = between(x, 15.0);
            put_half(&mut out[..2], d);
            put_half(&mut out[2..4], min);
            put_nibbles(&mut out[4..], &quants);
        }
        _ => {
            let (d, min, quants) = between(x, 31.0);
            put_half(&mut out[..2], d);
            put_half(&mut out[2..4], min);
            out[4..8].copy_from_slice(&fifth_bits(&quants));
            put_nibbles(&mut out[8..], &quants);
        }
    }
}

/// The scale and the offset of a K block, those of its eight parts as multiples of them, and its quants.
struct Offsets {
    scale: f32,
    offset: f32,
    scales: [u8; 8],
    offsets: [u8; 8],
    quants: [[u8; 32]; 8],
}

impl Offsets {
    /// Takes what was fitted to the parts to multiples of 6 bits, then fits the two values that all share.
    #[inline(always)]
    fn new(x: &[[f32; 32]; 8], top: f32) -> Self {
        let fitted: [Fitted; 8] = std::array::from_fn(|i| fit_offset(&x[i], top));
        let most = |value: fn(&Fitted) -> f32| fitted.iter().map(value).fold(0f32, f32::max);
        let scale = halved(most(|f| f.scale) / 63.0);
        let offset = halved(most(|f| f.offset) / 63.0);
        let times = |value: f32, unit: f32| (value * inverse(unit)).round().clamp(0.0, 63.0) as u8;
        let mut block = Offsets {
            scale,
            offset,
            scales: fitted.map(|f| times(f.scale, scale)),
            offsets: fitted.map(|f| times(f.offset, offset)),
            quants: [[0; 32]; 8],
        };
        let mut error = block.quantise(x, top);
        for _ in 0..2 {
            let (scale, offset) = block.shared(x);
            let mut other = Offsets { scale: halved(scale), offset: halved(offset), ..block };
            let other_error = other.quantise(x, top);
            if other_error < error {
                (block, error) = (other, other_error);
            } else {
                break;
            }
        }
        block
    }

    /// Rounds all elements to quants, and says the squared error.
    #[inline(always)]
    fn quantise(&mut self, x: &[[f32; 32]; 8], top: f32) -> f32 {
        let mut error = 0.0;
        for (i, x) in x.iter().enumerate() {
            let scale = self.scale * self.scales[i] as f32;
            let offset = self.offset * self.offsets[i] as f32;
            let id = inverse(scale);
            for (q, v) in self.quants[i].iter_mut().zip(x) {
                *q = super::fit::round((v + offset) * id).clamp(0.0, top) as u8;
            }
            let mut lanes = [0f32; 8];
            for (x, q) in x.as_chunks::<8>().0.iter().zip(self.quants[i].as_chunks::<8>().0) {
                for j in 0..8 {
                    let wrong = scale * q[j] as f32 - offset - x[j];
                    lanes[j] += wrong * wrong;
                }
            }
            error += lanes.iter().sum::<f32>();
        }
        error
    }

    /// The scale and the offset with the least squared error for these quants and multiples.
    #[inline(always)]
    fn shared(&self, x: &[[f32; 32]; 8]) -> (f32, f32) {
        // x = scale (s q) - offset m, summed over all elements: (s q)^2, m s q, m^2, x s q, x m.
        let [mut aa, mut ab, mut bb, mut xa, mut xb] = [0f64; 5];
        for (i, x) in x.iter().enumerate() {
            let s = self.scales[i] as f64;
            let m = self.offsets[i] as f64;
            let [q, qq, qx] = sums(x, |j| self.quants[i][j] as f32);
            let total: f32 = x.iter().sum();
            aa += s * s * qq as f64;
            ab += s * m * q as f64;
            bb += 32.0 * m * m;
            xa += s * qx as f64;
            xb += m * total as f64;
        }
        let determinant = aa * bb - ab * ab;
        if determinant > 1e-6 * aa * bb {
            (((xa * bb - xb * ab) / determinant) as f32, ((xa * ab - xb * aa) / determinant) as f32)
        } else if aa > 0.0 {
            ((xa / aa) as f32, 0.0)
        } else {
            (self.scale, self.offset)
        }
    }

    /// Scales and offsets of 6 bits: those of the first four parts, with the upper bits of the others above them, then the
    /// lower bits of the others.
    fn put_multiples(&self, out: &mut [u8]) {
        for i in 0..4 {
            out[i] = self.scales[i] | self.scales[i + 4] >> 4 << 6;
            out[i + 4] = self.offsets[i] | self.offsets[i + 4] >> 4 << 6;
            out[i + 8] = self.scales[i + 4] & 15 | (self.offsets[i + 4] & 15) << 4;
        }
    }
}

#[inline(always)]
fn block_with_offsets(format: Format, x: &[f32; K], out: &mut [u8]) {
    let mut parts = [[0f32; 32]; 8];
    parts.copy_from_slice(x.as_chunks().0);
    let five = format == Format::Q5_K;
    let block = Offsets::new(&parts, if five { 31.0 } else { 15.0 });
    put_half(&mut out[..2], block.scale);
    put_half(&mut out[2..4], block.offset);
    block.put_multiples(&mut out[4..16]);
    let (high, low) = out[16..].split_at_mut(if five { 32 } else { 0 });
    high.fill(0);
    for (i, h) in high.iter_mut().enumerate() {
        *h = (0..8).fold(0, |bits, part| bits | (block.quants[part][i] >> 4) << part);
    }
    for (pair, out) in block.quants.as_chunks::<2>().0.iter().zip(low.chunks_mut(32)) {
        for (i, o) in out.iter_mut().enumerate() {
            *o = pair[0][i] & 15 | (pair[1][i] & 15) << 4;
        }
    }
}

#[inline(always)]
fn block_of_q6_k(x: &[f32; K], out: &mut [u8]) {
    let (parts, _) = x.as_chunks::<16>();
    let fitted: [f32; 16] = std::array::from_fn(|i| fit_signed(&parts[i], 32.0));
    let scale = halved(largest(&fitted) / -128.0);
    let id = inverse(scale);
    let multiples = fitted.map(|s| (s * id).round().clamp(-128.0, 127.0));
    let quantise = |scale: f32| -> ([[f32; 16]; 16], f32) {
        let mut error = 0.0;
        let quants = std::array::from_fn(|i| {
            let s = scale * multiples[i];
            let id = inverse(s);
            let quants = parts[i].map(|v| super::fit::round(v * id).clamp(-32.0, 31.0));
            let wrong = |(q, v): (&f32, &f32)| (s * q - v) * (s * q - v);
            error += quants.iter().zip(&parts[i]).map(wrong).sum::<f32>();
            quants
        });
        (quants, error)
    };
    let mut best = (scale, quantise(scale));
    for _ in 0..2 {
        let (_, (quants, error)) = &best;
        let [mut qq, mut qx] = [0f64; 2];
        for (i, x) in parts.iter().enumerate() {
            let [_, own, with] = sums(x, |j| quants[i][j]);
            qq += (multiples[i] * multiples[i]) as f64 * own as f64;
            qx += multiples[i] as f64 * with as f64;
        }
        let scale = halved((qx / qq) as f32);
        let other = quantise(scale);
        if other.1 < *error {
            best = (scale, other);
        } else {
            break;
        }
    }
    let (scale, (quants, _)) = best;
    put_half(&mut out[208..], scale);
    out[192..208].iter_mut().zip(multiples).for_each(|(o, m)| *o = m as i8 as u8);
    out[..192].fill(0);
    for (i, q) in quants.as_flattened().iter().enumerate() {
        let q = (q + 32.0) as u8;
        // Halves of 128, in which element i + 32 j is the j-th of those that share bytes.
        let (half, quarter, at) = (i / 128, i / 32 % 4, i % 32);
        out[64 * half + 32 * (quarter % 2) + at] |= (q & 15) << (4 * (quarter / 2));
        out[128 + 32 * half + at] |= (q >> 4) << (2 * quarter);
    }
}

#[inline(always)]
fn encode_here(format: Format, row: &[f32], out: &mut [u8]) {
    let halves = |out: &mut [u8], bytes: fn(f32) -> [u8; 2]| {
        out.as_chunks_mut().0.iter_mut().zip(row).for_each(|(o, v)| *o = bytes(*v));
    };
    let blocks = out.chunks_exact_mut(format.block_bytes());
    match format {
        Format::F32 => blocks.zip(row).for_each(|(o, v)| o.copy_from_slice(&v.to_le_bytes())),
        Format::F16 => halves(out, |v| f16::from_f32(v).to_le_bytes()),
        Format::Bf16 => halves(out, |v| bf16::from_f32(v).to_le_bytes()),
        Format::Q4_K | Format::Q5_K => {
            blocks.zip(row.as_chunks().0).for_each(|(o, x)| block_with_offsets(format, x, o));
        }
        Format::Q6_K => blocks.zip(row.as_chunks().0).for_each(|(o, x)| block_of_q6_k(x, o)),
        _ => blocks.zip(row.as_chunks().0).for_each(|(o, x)| block_of_32(format, x, o)),
    }
}

vectorised! {
    fn encode_row(format: Format, row: &[f32], out: &mut [u8]) {
        encode_here(format, row, out);
    }
}

impl Format {
    /// Writes a row of whole blocks as it stands in a file. Says whether finite values are finite in this format too.
    pub(crate) fn encode(self, row: &[f32], out: &mut [u8]) -> bool {
        encode_row(self, row, out);
        let finite = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).is_finite();
        let mut blocks = out.chunks_exact(self.block_bytes());
        let kept = match (self, self.scales_in_block()) {
            (Format::F32, _) => true,
            (Format::Bf16, _) => blocks.all(|b| bf16::from_le_bytes([b[0], b[1]]).is_finite()),
            (_, None) => blocks.all(finite),
            (_, Some(at)) => blocks.all(|b| b[at.clone()].chunks(2).all(finite)),
        };
        kept || !row.iter().all(|v| v.is_finite())
    }
}
