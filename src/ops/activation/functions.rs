//! The functions with their derivatives: in f64 as the specification, and in f32.

use crate::engine::cpu::math;
use crate::simd::Target;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Silu,
    Gelu,
    GeluErf,
    Sigmoid,
    Softcap(f32),
}

/// `(f(x), f'(x))`
pub(super) fn exact(kind: Kind, x: f64) -> (f64, f64) {
    use std::f64::consts::{FRAC_1_SQRT_2, PI};
    let s = 1.0 / (1.0 + (-x).exp());
    match kind {
        Kind::Sigmoid => (s, s * (1.0 - s)),
        Kind::Silu => (x * s, s + x * s * (1.0 - s)),
        Kind::Gelu => {
            let c = (2.0 / PI).sqrt();
            let t = (c * (x + 0.044715 * x.powi(3))).tanh();
            let slope = c * (1.0 + 3.0 * 0.044715 * x * x);
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
        }
        Kind::Softcap(cap) => {
            let t = (x / cap as f64).tanh();
            (cap as f64 * t, 1.0 - t * t)
        }
        Kind::GeluErf => {
            let phi = 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2));
            (x * phi, phi + x * (-0.5 * x * x).exp() / (2.0 * PI).sqrt())
        }
    }
}

/// `2/sqrt(pi) e^(-x^2) sum_n 2^n x^(2n+1) / (2n+1)!!`: all terms have one sign, so nothing cancels.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 || x.is_nan() {
        return x.signum();
    }
    let mut term = x;
    let mut sum = x;
    let mut n = 0.0;
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp()
}

// `(f(x), f'(x))` in f32, by the formulas of the shader. Functions of their own, so that the loops around them are
// compiled for each and vectorised.

#[inline(always)]
pub(super) fn sigmoid(x: f32) -> (f32, f32) {
    let s = math::sigmoid(x);
    (s, s * (1.0 - s))
}

#[inline(always)]
pub(super) fn silu(x: f32) -> (f32, f32) {
    let s = math::sigmoid(x);
    (x * s, s + x * s * (1.0 - s))
}

#[inline(always)]
pub(super) fn gelu(x: f32) -> (f32, f32) {
    let c = 1.595_769_2;
    let b = x.clamp(-10.0, 10.0);
    let s = math::sigmoid(c * b * (0.044715 * b * b + 1.0));
    (x * s, s + b * s * (1.0 - s) * c * (3.0 * 0.044715 * b * b + 1.0))
}

#[inline(always)]
pub(super) fn gelu_erf(x: f32) -> (f32, f32) {
    let a = x.abs().min(13.0);
    let e = math::exp(Target, -0.5 * a * a);
    // Abramowitz & Stegun 7.1.26 at a / sqrt(2).
    let t = 1.0 / (0.231_641_89 * a + 1.0);
    let q = (((1.061_405_4 * t - 1.453_152) * t + 1.421_413_8) * t - 0.284_496_73) * t + 0.254_829_6;
    let tail = 0.5 * q * t * e;
    let phi = if x >= 0.0 { 1.0 - tail } else { tail };
    (x * phi, phi + x.clamp(-13.0, 13.0) * e * 0.398_942_3)
}

#[inline(always)]
pub(super) fn softcap(x: f32, cap: f32) -> (f32, f32) {
    let t = math::tanh(Target, x / cap);
    (cap * t, 1.0 - t * t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // From the C library's exp, tanh and erfc.
        let x = [-3.1, -0.4, 0.7, 5.5];
        let want = [
            (Kind::Silu, [-0.133632490317, -0.160524935955, 0.467731440518, 5.477614242563]),
            (Kind::Gelu, [-0.002626610231, -0.137838830573, 0.530570134705, 5.499999994072]),
            (Kind::GeluErf, [-0.002999569961, -0.137831303356, 0.530625443444, 5.499999895557]),
        ];
        for (kind, want) in want {
            for (x, want) in x.into_iter().zip(want) {
                assert!((exact(kind, x).0 - want).abs() < 1e-11, "{kind:?} {x}");
            }
        }
    }
}
