//! Inner products of packed rows with rows of `x`, on the CPU.
//!
//! For one row of `x` the values of the commonest formats are never made: a block contributes `d (q . x) + m sum x`,
//! and the sums of `x` over blocks are the same for all rows. Other formats, and several rows of `x`, decode a row and
//! use it at once.

use super::decode::{decode_here, half};
use super::format::Format;
use crate::simd::{self, vectorised};

/// Elements of a block of the formats that are not decoded.
const BLOCK: usize = 32;
/// Blocks whose scales are read together.
const TOGETHER: usize = 8;

/// A packed row of blocks of 32 without fifth bits.
#[derive(Clone, Copy)]
struct Row<'a> {
    quants: &'a [u8],
    /// Halves: the scales, or pairs of scale and minimum.
    scales: &'a [u32],
}

/// Rows that are multiplied with the rows of a weight.
pub(crate) struct Input<'a> {
    /// `[rows, cols]`
    x: &'a [f32],
    rows: usize,
    /// Of a single row: what the scales of a block are multiplied with beside `q . x`, and zeros up to a multiple of
    /// [`TOGETHER`] blocks.
    sums: Vec<f32>,
}

/// Formats whose rows are multiplied as they are.
#[derive(Clone, Copy, PartialEq)]
enum Packed {
    Q8_0,
    Q4_0,
    Q4_1,
}

impl Packed {
    fn of(format: Format) -> Option<Packed> {
        match format {
            Format::Q8_0 => Some(Packed::Q8_0),
            Format::Q4_0 => Some(Packed::Q4_0),
            Format::Q4_1 => Some(Packed::Q4_1),
            _ => None,
        }
    }

    /// Scales of a block: one, or a scale and a minimum.
    fn scales(self) -> usize {
        if self == Packed::Q4_1 { 2 } else { 1 }
    }

    /// ```text
    /// Q8_0: d q        Q4_0: d (q - 8)        Q4_1: d q + m
    /// ```
    fn sums(self, x: &[f32]) -> Vec<f32> {
        let blocks = x.as_chunks::<BLOCK>().0;
        let n = self.scales();
        let mut sums = vec![0f32; blocks.len().next_multiple_of(TOGETHER) * n];
        for (sums, x) in sums.chunks_mut(n).zip(blocks) {
            let mut lanes = [0f32; simd::LANES];
            for l in 0..simd::LANES {
                lanes[l] = x[l] + x[l + simd::LANES];
            }
            let sum = simd::tree(lanes);
            sums[n - 1] = match self {
                Packed::Q8_0 => 0.0,
                Packed::Q4_0 => -8.0 * sum,
                Packed::Q4_1 => sum,
            };
        }
        sums
    }

    fn row(self, words: &[u32], cols: usize) -> Row<'_> {
        let quant_words = if self == Packed::Q8_0 { cols / 4 } else { cols / 8 };
        let (quants, scales) = words.split_at(quant_words);
        Row { quants: bytemuck::cast_slice(quants), scales }
    }

    /// Inner product of a packed row with `x`: loops that the compiler turns into vector code.
    fn dot(self, row: Row<'_>, input: &Input<'_>) -> f32 {
        let n = self.scales();
        let scale = |at: usize| half(row.scales[at / 2] >> (16 * (at % 2)) & 0xffff);
        let mut total = 0f32;
        for (b, x) in input.x.as_chunks::<BLOCK>().0.iter().enumerate() {
            let mut q = [0f32; BLOCK];
            match self {
                Packed::Q8_0 => {
                    let bytes = &row.quants[32 * b..][..32];
                    q.iter_mut().zip(bytes).for_each(|(q, byte)| *q = *byte as i8 as f32);
                }
                Packed::Q4_0 | Packed::Q4_1 => {
                    for (i, byte) in row.quants[16 * b..][..16].iter().enumerate() {
                        (q[i], q[i + 16]) = ((byte & 15) as f32, (byte >> 4) as f32);
                    }
                }
            }
            let mut lanes = [0f32; simd::LANES];
            for l in 0..simd::LANES {
                lanes[l] = q[l] * x[l] + q[l + 16] * x[l + 16];
            }
            total += scale(n * b) * simd::tree(lanes) + scale(n * b + n - 1) * input.sums[n * b + n - 1];
        }
        total
    }

    /// `y[i] = row i . x`
    fn rows(self, words: &[u32], row_words: usize, input: &Input<'_>, y: &mut [f32]) {
        let cols = input.x.len();
        #[cfg(target_arch = "x86_64")]
        if simd::Avx2::detect().is_some() {
            let row = |i: usize| self.row(&words[i * row_words..][..row_words], cols);
            let mut scales = vec![0f32; 2 * input.sums.len()];
            let (pairs, last) = y.as_chunks_mut::<2>();
            let done = 2 * pairs.len();
            for (i, y) in pairs.iter_mut().enumerate() {
                // SAFETY: the processor was found to have these instructions.
                *y = unsafe { avx2::dots(self, [row(2 * i), row(2 * i + 1)], input, &mut scales) };
            }
            if let [y] = last {
                // SAFETY: as above.
                [*y] = unsafe { avx2::dots(self, [row(done)], input, &mut scales) };
            }
            return;
        }
        for (y, words) in y.iter_mut().zip(words.chunks_exact(row_words)) {
            *y = self.dot(self.row(words, cols), input);
        }
    }
}

/// By hand: what the compiler makes of the loops takes several times as long.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{BLOCK, Input, Packed, Row};
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn floats(v: &[f32; 8]) -> __m256 {
        // SAFETY: eight values are read.
        unsafe { _mm256_loadu_ps(v.as_ptr()) }
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn unsigned(q: &[u8; 8]) -> __m256i {
        _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*q)))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn signed(q: &[u8; 8]) -> __m256 {
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*q))))
    }
    /// Eight halves from four words.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn halves(words: &[u32; 4]) -> __m256 {
        // SAFETY: sixteen bytes are read.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(words.as_ptr().cast()) })
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn sum(v: __m256) -> f32 {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    }

    /// `q . x` of a block, in eight parts.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn nibbles(q: &[u8; 16], x: &[__m256; 4]) -> __m256 {
        let [q0, q1] = q.as_chunks::<8>().0 else { unreachable!("sixteen bytes") };
        let q0 = unsigned(q0);
        let q1 = unsigned(q1);
        let four = _mm256_set1_epi32(15);
        let low = |q: __m256i| _mm256_cvtepi32_ps(_mm256_and_si256(q, four));
        let high = |q: __m256i| _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(q));
        let part = _mm256_fmadd_ps(low(q1), x[1], _mm256_mul_ps(low(q0), x[0]));
        let more = _mm256_fmadd_ps(high(q1), x[3], _mm256_mul_ps(high(q0), x[2]));
        _mm256_add_ps(part, more)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn bytes(q: &[u8; 32], x: &[__m256; 4]) -> __m256 {
        let [q0, q1, q2, q3] = q.as_chunks::<8>().0 else { unreachable!("32 bytes") };
        let part = _mm256_fmadd_ps(signed(q1), x[1], _mm256_mul_ps(signed(q0), x[0]));
        let more = _mm256_fmadd_ps(signed(q3), x[3], _mm256_mul_ps(signed(q2), x[2]));
        _mm256_add_ps(part, more)
    }

    /// Inner products of packed rows with `x`: what is loaded of it serves all of them. `scales` has room for the
    /// scales of the rows, each as long as the sums of `x`.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn dots<const R: usize>(
        packed: Packed,
        rows: [Row<'_>; R],
        input: &Input<'_>,
        scales: &mut [f32],
    ) -> [f32; R] {
        match packed {
            Packed::Q8_0 => blocks::<R, 32, 1>(rows, input, scales, |q, x| bytes(q, x)),
            Packed::Q4_0 => blocks::<R, 16, 1>(rows, input, scales, |q, x| nibbles(q, x)),
            Packed::Q4_1 => blocks::<R, 16, 2>(rows, input, scales, |q, x| nibbles(q, x)),
        }
    }

    /// `sum_b d_b (q_b . x_b) + s_b . (sums of b)`, where the `S` scales `s_b` of a block begin with `d_b`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn blocks<const R: usize, const N: usize, const S: usize>(
        rows: [Row<'_>; R],
        input: &Input<'_>,
        scales: &mut [f32],
        product: impl Fn(&[u8; N], &[__m256; 4]) -> __m256,
    ) -> [f32; R] {
        let (x, _) = input.x.as_chunks::<BLOCK>();
        let n = input.sums.len();
        let mut totals = [_mm256_setzero_ps(); R];
        for (r, row) in rows.iter().enumerate() {
            let (words, last) = row.scales.as_chunks::<4>();
            let mut rest = [0; 4];
            for (i, word) in last.iter().enumerate() {
                rest[i] = *word;
            }
            let words = words.iter().chain([&rest]);
            let to = scales[r * n..][..n].as_chunks_mut::<8>().0;
            for ((to, sums), words) in to.iter_mut().zip(input.sums.as_chunks::<8>().0).zip(words) {
                let some = halves(words);
                totals[r] = _mm256_fmadd_ps(some, floats(sums), totals[r]);
                // SAFETY: eight values are written.
                unsafe { _mm256_storeu_ps(to.as_mut_ptr(), some) };
            }
        }
        // Loops, no closures: those may be compiled without the processor's instructions.
        let mut quants = [&[][..]; R];
        let mut d = [&[][..]; R];
        for (r, row) in rows.iter().enumerate() {
            quants[r] = &row.quants.as_chunks::<N>().0[..x.len()];
            d[r] = &scales[r * n..].as_chunks::<S>().0[..x.len()];
        }
        // Bytes to what is read four rows later: asked for now, as the processor does not foresee it in time.
        let ahead = 4 * 4 * (rows[0].quants.len() / 4 + rows[0].scales.len());
        for (b, x) in x.iter().enumerate() {
            let [x0, x1, x2, x3] = x.as_chunks::<8>().0 else { unreachable!("32 values") };
            let x = [floats(x0), floats(x1), floats(x2), floats(x3)];
            for r in 0..R {
                let q = &quants[r][b];
                _mm_prefetch::<_MM_HINT_T0>(q.as_ptr().wrapping_add(ahead).cast());
                totals[r] = _mm256_fmadd_ps(_mm256_set1_ps(d[r][b][0]), product(q, &x), totals[r]);
            }
        }
        let mut out = [0.0; R];
        for (out, total) in out.iter_mut().zip(totals) {
            *out = sum(total);
        }
        out
    }
}

vectorised! {
    /// Rows of `x` with a row that is decoded first, into `row`, unless it is one of values.
    fn decoded(simd: _, format: Format, words: &[u32], x: &[f32], row: &mut [f32], y: &mut [f32]) {
        let n = row.len();
        let row = match format {
            Format::F32 => &bytemuck::cast_slice(words)[..n],
            _ => {
                decode_here(format, words, row);
                &*row
            }
        };
        for (y, x) in y.iter_mut().zip(x.chunks_exact(n)) {
            *y = simd::dot(simd, row, x);
        }
    }
}

impl Format {
    /// `rows` rows of `x`, for [`dots`](Format::dots).
    pub(super) fn input(self, x: &[f32], rows: usize) -> Input<'_> {
        let sums = Packed::of(self).filter(|_| rows == 1).map_or(vec![], |packed| packed.sums(x));
        Input { x, rows, sums }
    }

    /// Inner products of packed rows of `cols` elements, one behind the other, with the rows of `x`:
    /// `y` `[packed rows, rows of x]`.
    pub(super) fn dots(self, cols: usize, words: &[u32], input: &Input<'_>, y: &mut [f32]) {
        let row_words = self.row_words(cols);
        let m = input.rows;
        if row_words == 0 {
            return y.fill(0.0);
        }
        if let (Some(packed), 1) = (Packed::of(self), m) {
            return packed.rows(words, row_words, input, y);
        }
        let mut row = vec![0f32; cols];
        for (y, words) in y.chunks_mut(m).zip(words.chunks_exact(row_words)) {
            decoded(self, words, input.x, &mut row, y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_rows_have_the_inner_products_of_their_values() {
        for format in Format::ALL {
            for (rows, blocks) in [(1, 1), (2, 3), (1, 8), (1, 16), (3, 21)] {
                let cols = blocks * format.block_len();
                let raw = crate::weight::sample(format, rows, cols, 5);
                let row_words = format.row_words(cols);
                let mut words = vec![0; rows * row_words];
                let mut values = vec![0f32; rows * cols];
                for (i, raw) in raw.chunks(raw.len() / rows).enumerate() {
                    let words = &mut words[i * row_words..][..row_words];
                    format.pack(raw, words);
                    format.decode(words, &mut values[i * cols..][..cols]);
                }
                for m in [1, 2] {
                    let x = crate::rng::Stream::new(6).normal_vec(m * cols, 1.0);
                    let mut y = vec![f32::NAN; rows * m];
                    let input = format.input(&x, m);
                    format.dots(cols, &words, &input, &mut y);
                    let mut plain = y.clone();
                    if let (Some(packed), 1) = (Packed::of(format), m) {
                        for (y, words) in plain.iter_mut().zip(words.chunks(row_words)) {
                            *y = packed.dot(packed.row(words, cols), &input);
                        }
                    }
                    for (i, got) in y.iter().zip(&plain).enumerate() {
                        let row = &values[i / m * cols..][..cols];
                        let x = &x[i % m * cols..][..cols];
                        let products = row.iter().zip(x).map(|(a, b)| *a as f64 * *b as f64);
                        let (want, size) =
                            products.fold((0.0, 1e-9), |(sum, size), v| (sum + v, size + v.abs()));
                        for got in [got.0, got.1] {
                            let error = (*got as f64 - want).abs();
                            assert!(error < 1e-5 * size, "{format:?} {blocks} {m}: {got} {want}");
                        }
                    }
                }
            }
        }
    }
}
