// activation.wgsl - y[i] = f(x[i]),  f = silu | gelu (tanh) | gelu_erf | sigmoid | softcap | exp | log | relu | softplus |
//             power | quick_gelu | relu6;  gated: y[i] = f(x[i]) * up[i]
// Entries   : forward, backward (dx = f'(x) dy), gated, gated_backward
// Shapes    : all [N]
// Grid      : ceil(N / WG) folded to 2-D; one invocation = one element
// Prelude   : WG = 256; KIND = 0 silu | 1 gelu | 2 gelu_erf | 3 sigmoid | 4 softcap: cap tanh(x / cap) (gated: 0, 1) |
//             5 exp | 6 log: ln(x + shift) | 7 relu | 8 softplus: ln(1 + e^x) | 9 power: (x + shift)^exponent |
//             10 quick_gelu: x / (1 + e^(-1.702 x)) | 11 relu6: min(max(x, 0), 6)
// Precision : exp of non-positive numbers only, but in exp and power, so nothing overflows; tanh comes from the same
//             sigmoid, because the built-in may be off by 2^-11; erf is off by at most 1.5e-7; a power is exp of a
//             multiple of log
// Limits    : 5 bindings
// Cost      : 10..30 flop an element, 8N..20N bytes (memory bound)
// Source    : Hendrycks & Gimpel 2016, arXiv:1606.08415; Shazeer 2020, arXiv:2002.05202; erf: Abramowitz & Stegun
//             1964, 7.1.26        CPU: src/ops/activation/mod.rs
struct Params { n: u32, cap: f32, shift: f32, exponent: f32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read_write> dx: array<f32>;
@group(0) @binding(1) var<storage, read> up: array<f32>;
@group(0) @binding(2) var<storage, read_write> product: array<f32>;
@group(0) @binding(2) var<storage, read> dy2: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx3: array<f32>;
@group(0) @binding(4) var<storage, read_write> dup: array<f32>;

fn sigmoid(v: f32) -> f32 {
  let e = exp(-abs(v));
  return select(e, 1.0, v >= 0.0) / (1.0 + e);
}

// f(v) and f'(v)
struct Pair { value: f32, slope: f32 }

fn silu(v: f32) -> Pair {
  let s = sigmoid(v);
  return Pair(v * s, fma(v * s, 1.0 - s, s));
}

// (1 + tanh u) / 2 = sigmoid(2 u) with u = sqrt(2/pi) (v + 0.044715 v^3)
fn gelu(v: f32) -> Pair {
  let c = 1.5957691216057308;
  // Beyond |v| = 10 the sigmoid is 0 or 1; the bound keeps v^3 finite.
  let b = clamp(v, -10.0, 10.0);
  let s = sigmoid(c * b * fma(0.044715 * b, b, 1.0));
  return Pair(v * s, fma(b * s * (1.0 - s), c * fma(3.0 * 0.044715 * b, b, 1.0), s));
}

// v Phi(v), Phi(v) = erfc(-v / sqrt 2) / 2
fn gelu_erf(v: f32) -> Pair {
  let a = min(abs(v), 13.0);
  let e = exp(-0.5 * a * a);
  let t = 1.0 / fma(0.3275911 * 0.7071067811865476, a, 1.0);
  let q = fma(fma(fma(fma(1.061405429, t, -1.453152027), t, 1.421413741), t, -0.284496736), t, 0.254829592) * t;
  let tail = 0.5 * q * e;
  let phi = select(tail, 1.0 - tail, v >= 0.0);
  return Pair(v * phi, fma(select(-a, a, v >= 0.0), 0.3989422804014327 * e, phi));
}

fn quick_gelu(v: f32) -> Pair {
  let s = sigmoid(1.702 * v);
  return Pair(v * s, fma(1.702 * v * s, 1.0 - s, s));
}

fn logistic(v: f32) -> Pair {
  let s = sigmoid(v);
  return Pair(s, s * (1.0 - s));
}

fn capped(v: f32) -> Pair {
  let t = tanh_of(v / p.cap);
  return Pair(p.cap * t, 1.0 - t * t);
}

fn exponential(v: f32) -> Pair {
  let e = exp(v);
  return Pair(e, e);
}

fn logarithm(v: f32) -> Pair {
  return Pair(log(v + p.shift), 1.0 / (v + p.shift));
}

fn relu(v: f32) -> Pair {
  return Pair(select(v, 0.0, v < 0.0), select(0.0, 1.0, v > 0.0));
}

fn relu6(v: f32) -> Pair {
  return Pair(select(select(v, 6.0, v > 6.0), 0.0, v < 0.0), select(0.0, 1.0, v > 0.0 && v < 6.0));
}

// 1 + e has few digits of a small e = e^-|v|: there, the series of the logarithm.
fn softplus(v: f32) -> Pair {
  let e = exp(-abs(v));
  let tail = select(log(1.0 + e), e * (1.0 - e * (0.5 - e / 3.0)), e < 0.01);
  return Pair(max(v, 0.0) + tail, sigmoid(v));
}

fn power(v: f32) -> Pair {
  let l = log(v + p.shift);
  return Pair(exp(p.exponent * l), p.exponent * exp((p.exponent - 1.0) * l));
}

fn activation(v: f32) -> Pair {
  switch (KIND) {
    case 0u: { return silu(v); }
    case 1u: { return gelu(v); }
    case 2u: { return gelu_erf(v); }
    case 3u: { return logistic(v); }
    case 4u: { return capped(v); }
    case 5u: { return exponential(v); }
    case 6u: { return logarithm(v); }
    case 7u: { return relu(v); }
    case 8u: { return softplus(v); }
    case 10u: { return quick_gelu(v); }
    case 11u: { return relu6(v); }
    default: { return power(v); }
  }
}

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i < p.n) { y[i] = activation(x[i]).value; }
}

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i < p.n) { dx[i] = activation(x[i]).slope * dy[i]; }
}

@compute @workgroup_size(WG)
fn gated(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i < p.n) { product[i] = activation(x[i]).value * up[i]; }
}

@compute @workgroup_size(WG)
fn gated_backward(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i < p.n) {
    let s = activation(x[i]);
    dx3[i] = s.slope * up[i] * dy2[i];
    dup[i] = s.value * dy2[i];
  }
}
