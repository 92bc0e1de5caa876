//! The functions with their derivatives: in f64 as the specification, and in f32.

use crate::engine::cpu::math;
use crate::simd::Target;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Silu,
    Gelu,
    GeluErf,
    QuickGelu,
    Sigmoid,
    Softcap(f32),
    Exp,
    Log { shift: f32 },
    Relu,
    Relu6,
    Softplus,
    Power { exponent: f32, shift: f32 },
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
        Kind::QuickGelu => {
            let s = 1.0 / (1.0 + (-1.702 * x).exp());
            (x * s, s + 1.702 * x * s * (1.0 - s))
        }
        Kind::Exp => (x.exp(), x.exp()),
        Kind::Log { shift } => ((x + shift as f64).ln(), 1.0 / (x + shift as f64)),
        Kind::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
        Kind::Relu6 => (x.clamp(0.0, 6.0), if x > 0.0 && x < 6.0 { 1.0 } else { 0.0 }),
        Kind::Softplus => (x.max(0.0) + (-x.abs()).exp().ln_1p(), s),
        Kind::Power { exponent, shift } => {
            let v = x + shift as f64;
            let q = exponent as f64;
            (v.powf(q), q * v.powf(q - 1.0))
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
pub(super) fn quick_gelu(x: f32) -> (f32, f32) {
    let s = math::sigmoid(1.702 * x);
    (x * s, s + 1.702 * x * s * (1.0 - s))
}

#[inline(always)]
pub(super) fn softcap(x: f32, cap: f32) -> (f32, f32) {
    let t = math::tanh(Target, x / cap);
    (cap * t, 1.0 - t * t)
}

#[inline(always)]
pub(super) fn exp(x: f32) -> (f32, f32) {
    // The square of half of it reaches the largest numbers, and beyond them infinity.
    let root = math::exp(Target, 0.5 * x);
    (root * root, root * root)
}

#[inline(always)]
pub(super) fn log(x: f32, shift: f32) -> (f32, f32) {
    let v = x + shift;
    (math::ln(Target, v), 1.0 / v)
}

#[inline(always)]
pub(super) fn relu(x: f32) -> (f32, f32) {
    (if x < 0.0 { 0.0 } else { x }, if x > 0.0 { 1.0 } else { 0.0 })
}

#[inline(always)]
pub(super) fn relu6(x: f32) -> (f32, f32) {
    (x.clamp(0.0, 6.0), if x > 0.0 && x < 6.0 { 1.0 } else { 0.0 })
}

#[inline(always)]
pub(super) fn softplus(x: f32) -> (f32, f32) {
    let e = math::exp(Target, -x.abs());
    // What 1 + e loses of a small e is added back.
    let u = 1.0 + e;
    let tail = math::ln(Target, u) + (e - (u - 1.0)) / u;
    (if x < 0.0 { tail } else { x + tail }, math::sigmoid(x))
}

#[inline(always)]
pub(super) fn power(x: f32, exponent: f32, shift: f32) -> (f32, f32) {
    let log = math::ln(Target, x + shift);
    (exp(exponent * log).0, exponent * exp((exponent - 1.0) * log).0)
}

/// Evaluates an expression in which `f` is the function of a kind, once compiled for each.
macro_rules! with_function {
    ($kind:expr, $f:ident => $body:expr) => {
        match $kind {
            Kind::Silu => with_function!(silu, $f, $body),
            Kind::Gelu => with_function!(gelu, $f, $body),
            Kind::GeluErf => with_function!(gelu_erf, $f, $body),
            Kind::QuickGelu => with_function!(quick_gelu, $f, $body),
            Kind::Sigmoid => with_function!(sigmoid, $f, $body),
            Kind::Softcap(cap) => with_function!(move |x| softcap(x, cap), $f, $body),
            Kind::Exp => with_function!(exp, $f, $body),
            Kind::Log { shift } => with_function!(move |x| log(x, shift), $f, $body),
            Kind::Relu => with_function!(relu, $f, $body),
            Kind::Relu6 => with_function!(relu6, $f, $body),
            Kind::Softplus => with_function!(softplus, $f, $body),
            Kind::Power { exponent, shift } => {
                with_function!(move |x| power(x, exponent, shift), $f, $body)
            }
        }
    };
    ($function:expr, $f:ident, $body:expr) => {{
        let $f = $function;
        $body
    }};
}
pub(super) use with_function;

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
            (Kind::QuickGelu, [-0.015766045248, -0.134433109712, 0.536893951723, 5.499526963459]),
            (Kind::Softplus, [0.044063967939, 0.513015252400, 1.103186048885, 5.504078443270]),
        ];
        for (kind, want) in want {
            for (x, want) in x.into_iter().zip(want) {
                assert!((exact(kind, x).0 - want).abs() < 1e-11, "{kind:?} {x}");
            }
        }
    }

    #[test]
    fn both_precisions_agree_at_the_ends() {
        // Relative to each value, where that is a normal number of f32.
        let to = |exponent| Kind::Power { exponent, shift: 0.5 };
        let kinds = [
            (Kind::Exp, &[-80.0, -1.0, 0.0, 1.0, 88.5][..]),
            (Kind::Log { shift: 0.5 }, &[-0.499, 0.0, 1.0, 1e30]),
            (Kind::Relu, &[-2.0, -0.0, 0.0, 1e-30, 3.0]),
            (Kind::Relu6, &[-2.0, -0.0, 0.0, 1e-30, 3.0, 6.0, 7.0]),
            (Kind::Softplus, &[-80.0, -9.0, -4.6, -0.1, 0.0, 0.1, 9.0, 1e30]),
            (to(-1.0), &[-0.499, 0.0, 1.0, 1e10]),
            (to(-0.5), &[-0.499, 0.0, 1.0, 1e10]),
            (to(0.5), &[-0.499, 0.0, 1.0, 1e10]),
            (to(1.1), &[-0.499, 0.0, 1.0, 1e10]),
            (to(2.0), &[-0.499, 0.0, 1.0, 1e10]),
        ];
        for (kind, values) in kinds {
            for &x in values {
                let got = with_function!(kind, f => f(x));
                let want = exact(kind, x as f64);
                for (got, want) in [(got.0, want.0), (got.1, want.1)] {
                    let error = (got as f64 - want).abs();
                    assert!(error <= 1e-5 * want.abs(), "{kind:?} {x}: {got}, expected {want}");
                }
            }
        }
        assert_eq!((exp(200.0).0, exp(-200.0).0), (f32::INFINITY, 0.0));
        assert_eq!((power(0.0, 2.0, 0.0).0, log(0.0, 0.0).0), (0.0, f32::NEG_INFINITY));
        assert!(relu(f32::NAN).0.is_nan() && relu6(f32::NAN).0.is_nan() && softplus(f32::NAN).0.is_nan());
    }
}
