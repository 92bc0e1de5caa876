//! Scalar functions and sums of the CPU lanes, in a form that the compiler vectorises.

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

const LANES: usize = 16;

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
    let mut half = LANES / 2;
    while half > 0 {
        for k in 0..half {
            acc[k] += acc[k + half];
        }
        half /= 2;
    }
    acc[0]
//! Loops over `f32` in a form that compilers turn into vector instructions without fast-math.

const LANES: usize = 8;

/// `e^x`, 0 below -87; measured error at most 1.5 ulp. The library's `exp` is a scalar call per element.
/// Range reduction and polynomial: Cephes' `expf` (Moshier 1989).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let in_range = if x > 88.0 { 88.0 } else { x };
    let shifted = in_range * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (in_range - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut y = 1.987_569_2e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
        y = y * r + c;
    }
    let y = y * r * r + r + 1.0;
    let scale = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32).wrapping_add(127) << 23;
    if x < -87.0 { 0.0 } else { y * f32::from_bits(scale as u32) }
}

/// Folds a slice in `LANES` independent chains and joins them in order.
#[inline(always)]
fn fold(v: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let (body, tail) = v.split_at(v.len() / LANES * LANES);
    let mut acc = [start; LANES];
    for chunk in body.chunks_exact(LANES) {
        for (a, &v) in acc.iter_mut().zip(chunk) {
            *a = f(*a, v);
        }
    }
    let joined = acc.into_iter().fold(start, &f);
    tail.iter().fold(joined, |a, &v| f(a, v))
}

/// Sum.
pub(crate) fn sum(v: &[f32]) -> f32 {
    fold(v, 0.0, |a, v| a + v)
}

/// Largest value, minus infinity for none. A NaN is passed over.
pub(crate) fn max(v: &[f32]) -> f32 {
    fold(v, f32::NEG_INFINITY, |a, v| if v > a { v } else { a })
}

/// Inner product.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let mut acc = [0f32; LANES];
    for (x, y) in a[..n].chunks_exact(LANES).zip(b[..n].chunks_exact(LANES)) {
        for i in 0..LANES {
            acc[i] += x[i] * y[i];
        }
    }
    let tail = n / LANES * LANES;
    let rest: f32 = a[tail..n].iter().zip(&b[tail..n]).map(|(x, y)| x * y).sum();
    acc.iter().sum::<f32>() + rest
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
    fn exp_is_accurate() {
        let mut worst = 0f64;
        for i in -86_999..88_000 {
            let x = i as f32 * 1e-3;
            let want = (x as f64).exp();
            worst = worst.max((exp(x) as f64 / want - 1.0).abs());
        }
        assert!(worst < 1.8e-7, "{worst:e}");
        assert_eq!((exp(f32::NEG_INFINITY), exp(-1e30), exp(0.0)), (0.0, 0.0, 1.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn folds_cover_every_length() {
        for n in 0..40 {
            let v: Vec<f32> = (0..n).map(|i| (i * 7 % 40) as f32 - 20.0).collect();
            assert_eq!(sum(&v), v.iter().sum::<f32>());
            assert_eq!(max(&v), v.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(dot(&v, &v), v.iter().map(|v| v * v).sum::<f32>());
        }
    }
}
