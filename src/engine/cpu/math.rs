//! Scalar functions and sums of the CPU back ends, in a form that the compiler vectorises.

use crate::simd::{LANES, Set, Target, mul_add, tree};

/// `e^x` for `x <= 88`, relative error below 2e-7; 0 below -87.3. Cephes `expf` without branches.
#[inline(always)]
pub(crate) fn exp<S: Set>(simd: S, x: f32) -> f32 {
    // Adding this rounds to the nearest integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let c = x.clamp(-87.3, 88.0);
    let t = mul_add(simd, c, std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    let r = mul_add(simd, n, 2.121_944_4e-4, mul_add(simd, n, -0.693_359_4, c));
    let mut q = 1.987_569_1e-4;
    for k in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        q = mul_add(simd, q, r, k);
    }
    let two_n = f32::from_bits((t.to_bits() << 23).wrapping_add(127 << 23));
    let y = (mul_add(simd, q * r, r, r) + 1.0) * two_n;
    if x < -87.3 { 0.0 } else { y }
}

/// Turns all values into `e^(v - top)`. Returns their sum, in the order of [`sum_of`].
#[inline(always)]
pub(crate) fn exp_all<S: Set>(simd: S, values: &mut [f32], top: f32) -> f32 {
    let mut acc = simd.zeros();
    let (body, tail) = values.as_chunks_mut::<LANES>();
    for chunk in body {
        for v in chunk.iter_mut() {
            *v = exp(simd, *v - top);
        }
        acc = simd.add(acc, simd.load(chunk));
    }
    if tail.is_empty() {
        return simd.sum(acc);
    }
    let mut sums = [0f32; LANES];
    simd.store(acc, &mut sums);
    for (v, sum) in tail.iter_mut().zip(&mut sums) {
        *v = exp(simd, *v - top);
        *sum += *v;
    }
    tree(sums)
}

/// `1 / (1 + e^-x)`, without overflow.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let e = exp(Target, -x.abs());
    (if x >= 0.0 { 1.0 } else { e }) / (1.0 + e)
}

/// `tanh x`, relative error below 3e-7. Cephes `tanhf` without branches.
#[inline(always)]
pub(crate) fn tanh<S: Set>(simd: S, x: f32) -> f32 {
    let a = x.abs();
    let z = x * x;
    let mut q = -5.704_988_7e-3;
    for k in [2.063_908_8e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        q = mul_add(simd, q, z, k);
    }
    let near = mul_add(simd, q * z, x, x);
    let e = exp(simd, -2.0 * a);
    let far = (1.0 - 2.0 * e / (1.0 + e)).copysign(x);
    if a < 0.625 { near } else { far }
}

/// `ln x`, relative error below 2e-7, next to 1 too; minus infinity at 0, NaN below. Cephes `logf` without branches.
#[inline(always)]
pub(crate) fn ln<S: Set>(simd: S, x: f32) -> f32 {
    const ROOT_HALF: u32 = 0x3f35_04f3;
    let tiny = x < f32::MIN_POSITIVE;
    let bits = (if tiny { x * 8_388_608.0 } else { x }).to_bits();
    // x = 2^n (1 + f), where 1 + f lies between sqrt(1/2) and sqrt(2).
    let exponent = (bits.wrapping_sub(ROOT_HALF) as i32) >> 23;
    let f = f32::from_bits(bits.wrapping_sub((exponent as u32) << 23)) - 1.0;
    let n = exponent as f32 - if tiny { 23.0 } else { 0.0 };
    let z = f * f;
    let mut q = 7.037_683_6e-2;
    for k in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        q = mul_add(simd, q, f, k);
    }
    let q = mul_add(simd, -0.5, z, mul_add(simd, n, -2.121_944_4e-4, q * f * z));
    let y = mul_add(simd, n, 0.693_359_4, f + q);
    // The ends are added, not chosen: constants that go on into other functions would become branches there.
    let end = if x == 0.0 { f32::NEG_INFINITY } else { 0.0 };
    let end = if x == f32::INFINITY { x } else { end };
    let nan = if x >= 0.0 { 0 } else { f32::NAN.to_bits() };
    f32::from_bits((y + end).to_bits() | nan)
}

/// Sum of `f(i)` for `i < n` in a fixed order: sixteen running sums, then their tree.
#[inline(always)]
pub(crate) fn sum_of(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut acc = [0f32; LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (k, a) in acc.iter_mut().enumerate() {
            *a += f(start + k);
        }
    }
    for i in whole..n {
        acc[i - whole] += f(i);
    }
    tree(acc)
}

/// Inner product over the shorter length.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let a = &a[..n];
    let b = &b[..n];
    sum_of(n, |i| a[i] * b[i])
}

/// Largest value, minus infinity for none. A NaN is passed over.
#[inline(always)]
pub(crate) fn max<S: Set>(simd: S, v: &[f32]) -> f32 {
    let (body, tail) = v.as_chunks::<LANES>();
    let mut acc = simd.all(f32::NEG_INFINITY);
    for chunk in body {
        acc = simd.max(simd.load(chunk), acc);
    }
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..tail.len()].copy_from_slice(tail);
    simd.largest(simd.max(simd.load(&last), acc))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::vectorised;

    #[test]
    fn exp_is_close_everywhere() {
        for i in -8700..=8800 {
            let x = i as f32 / 100.0;
            let want = (x as f64).exp();
            let got = exp(Target, x);
            assert!((got as f64 - want).abs() <= 2e-7 * want, "{x}: {got} {want}");
        }
        assert_eq!([-88.0, f32::NEG_INFINITY, 0.0].map(|x| exp(Target, x)), [0.0, 0.0, 1.0]);
        assert!(exp(Target, f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
        assert_eq!((sigmoid(-1e30), sigmoid(1e30)), (0.0, 1.0));
    }

    #[test]
    fn ln_is_close_everywhere() {
        let steps = (-1400..=1280).map(|i| 2f64.powf(i as f64 / 10.0));
        let near_one = (-400..=400).map(|i| 1.0 + i as f64 / 1000.0);
        for x in steps.chain(near_one).map(|x| x as f32).filter(|x| x.is_finite()) {
            let want = (x as f64).ln();
            let got = ln(Target, x);
            assert!((got as f64 - want).abs() <= 2e-7 * want.abs(), "{x}: {got} {want}");
        }
        assert_eq!(
            [0.0, -0.0, f32::INFINITY].map(|x| ln(Target, x)),
            [-f32::INFINITY, -f32::INFINITY, f32::INFINITY]
        );
        assert!(ln(Target, -1.0).is_nan() && ln(Target, f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_close_everywhere() {
        for i in -3000..=3000 {
            let x = (i as f32 / 1000.0).powi(3);
            let want = (x as f64).tanh();
            let got = tanh(Target, x);
            assert!((got as f64 - want).abs() <= 3e-7 * want.abs(), "{x}: {got} {want}");
        }
        assert_eq!([-1e30, -0.0, 1e30, f32::INFINITY].map(|x| tanh(Target, x)), [-1.0, 0.0, 1.0, 1.0]);
        assert!(tanh(Target, f32::NAN).is_nan());
    }

    vectorised! {
        fn exp_of(simd: _, values: &mut [f32], sum: &mut f32, largest: &mut f32) {
            *largest = max(simd, values);
            *sum = exp_all(simd, values, *largest);
        }
    }

    #[test]
    fn exponentials_of_this_processor_are_close() {
        for n in [0, 1, 15, 16, 17, 32, 100] {
            let v: Vec<f32> = (0..n).map(|i| (i * 37 % 101) as f32 * 0.9 - 50.0).collect();
            let mut got = v.clone();
            let mut sum = 0.0;
            let mut largest = 0.0;
            exp_of(&mut got, &mut sum, &mut largest);
            assert_eq!(largest, v.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let want: Vec<f64> = v.iter().map(|v| ((v - largest) as f64).exp()).collect();
            for (got, want) in got.iter().zip(&want) {
                assert!((*got as f64 - want).abs() <= 2e-7 * want + 1e-38, "{n}: {got} {want}");
            }
            let all: f64 = want.iter().sum();
            assert!((sum as f64 - all).abs() <= 1e-6 * all, "{n}: {sum} {all}");
        }
    }

    #[test]
    fn sums_have_every_term() {
        for n in [0, 1, 15, 16, 17, 100] {
            assert_eq!(sum_of(n, |i| i as f32), (n * n.saturating_sub(1) / 2) as f32);
            let v: Vec<f32> = (0..n).map(|i| (i * 7 % 40) as f32 - 20.0).collect();
            assert_eq!(max(Target, &v), v.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(dot(&v, &v), v.iter().map(|v| v * v).sum::<f32>());
        }
    }
}
