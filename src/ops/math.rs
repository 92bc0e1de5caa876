//! Scalar functions and sums of the CPU lanes, in a form that the compiler vectorises.

use crate::simd::{LANES, tree};

/// `e^x` for `x <= 88`, relative error below 2e-7; 0 below -87.3. Cephes `expf` without branches.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding this rounds to the nearest integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let c = x.clamp(-87.3, 88.0);
    let t = c * std::f32::consts::LOG2_E + ROUND;
    let n = t - ROUND;
    let r = c - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut q = 1.987_569_1e-4;
    for k in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        q = q * r + k;
    }
    let two_n = f32::from_bits((t.to_bits() << 23).wrapping_add(127 << 23));
    let y = (q * r * r + r + 1.0) * two_n;
    if x < -87.3 { 0.0 } else { y }
}

/// `1 / (1 + e^-x)`, without overflow.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    (if x >= 0.0 { 1.0 } else { e }) / (1.0 + e)
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

/// Sum.
#[inline(always)]
pub(crate) fn sum(v: &[f32]) -> f32 {
    sum_of(v.len(), |i| v[i])
}

/// Inner product over the shorter length.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    sum_of(n, |i| a[i] * b[i])
}

/// Largest value, minus infinity for none. A NaN is passed over.
#[inline(always)]
pub(crate) fn max(v: &[f32]) -> f32 {
    let larger = |a: f32, v: f32| if v > a { v } else { a };
    let (body, tail) = v.split_at(v.len() / LANES * LANES);
    let mut acc = [f32::NEG_INFINITY; LANES];
    for chunk in body.chunks_exact(LANES) {
        acc.iter_mut().zip(chunk).for_each(|(a, &v)| *a = larger(*a, v));
    }
    acc.into_iter().chain(tail.iter().copied()).fold(f32::NEG_INFINITY, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        for i in -8700..=8800 {
            let x = i as f32 / 100.0;
            let want = (x as f64).exp();
            assert!((exp(x) as f64 - want).abs() <= 2e-7 * want, "{x}: {} {want}", exp(x));
        }
        assert_eq!((exp(-88.0), exp(f32::NEG_INFINITY), exp(0.0)), (0.0, 0.0, 1.0));
        assert!(exp(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
        assert_eq!((sigmoid(-1e30), sigmoid(1e30)), (0.0, 1.0));
    }

    #[test]
    fn sums_have_every_term() {
        for n in [0, 1, 15, 16, 17, 100] {
            assert_eq!(sum_of(n, |i| i as f32), (n * n.saturating_sub(1) / 2) as f32);
            let v: Vec<f32> = (0..n).map(|i| (i * 7 % 40) as f32 - 20.0).collect();
            assert_eq!(max(&v), v.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(dot(&v, &v), v.iter().map(|v| v * v).sum::<f32>());
        }
    }
}
