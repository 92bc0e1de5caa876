// adamw.wgsl - g = scale * grad;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;
//              w = (1 - lr wd) w - lr/c1 * m / (sqrt(v / c2) + eps),  c1 = 1 - b1^t,  c2 = 1 - b2^t
// Entries   : step, step_by_factor (scale times a number that is on the device)
// Shapes    : grad, w, m, v [N]  factor [1]
// Grid      : ceil(N / WG) folded to 2-D; one invocation = one element
// Prelude   : WG = 256
// Precision : the powers and quotients of constants come from the host, in f64
// Limits    : 5 bindings
// Cost      : 15*N flop, 28*N bytes (memory bound)
// Source    : Loshchilov & Hutter 2017, arXiv:1711.05101, as in PyTorch        CPU: src/ops/adamw.rs
struct Params {
  n: u32, beta1: f32, rest1: f32, beta2: f32, rest2: f32,
  keep: f32, rate: f32, inv_root_c2: f32, eps: f32, scale: f32,
}
@group(0) @binding(0) var<storage, read> grad: array<f32>;
@group(0) @binding(1) var<storage, read_write> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> m: array<f32>;
@group(0) @binding(3) var<storage, read_write> v: array<f32>;
@group(0) @binding(4) var<storage, read> factor: array<f32>;

fn update(i: u32, scale: f32) {
  let g = scale * grad[i];
  let m1 = fma(p.beta1, m[i], p.rest1 * g);
  let v1 = fma(p.beta2, v[i], p.rest2 * g * g);
  m[i] = m1;
  v[i] = v1;
  w[i] = fma(p.keep, w[i], -p.rate * m1 / fma(sqrt(v1), p.inv_root_c2, p.eps));
}

@compute @workgroup_size(WG)
fn step(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(wid, g) * WG + l;
  if (i < p.n) { update(i, p.scale); }
}

@compute @workgroup_size(WG)
fn step_by_factor(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(wid, g) * WG + l;
  if (i < p.n) { update(i, p.scale * factor[0]); }
}
