// elementwise.wgsl - y[i] = a[i] + s * b[i] (add),  a[i] * b[i] (mul),  s * a[i] (scale),  y[i] += a[i] (add_assign),
//                    y[i] = s (fill)
// Entries   : add, mul, scale, add_assign, fill
// Shapes    : a, y [N]; b of add and mul, a of scale: [N], or one row [D] for all rows, or one value per row:
//             element (i / div) % len
// Grid      : ceil(N / WG) folded to 2-D; one invocation = one element
// Prelude   : WG = 256
// Precision : one rounding
// Limits    : 3 bindings
// Cost      : 0..2N flop, 4N..12N bytes (memory bound)
// CPU       : src/ops/elementwise.rs
struct Params { n: u32, div: u32, len: u32, s: f32 }
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read_write> y1: array<f32>;
@group(0) @binding(0) var<storage, read_write> y0: array<f32>;

@compute @workgroup_size(WG)
fn add(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i < p.n) { y[i] = fma(p.s, b[(i / p.div) % p.len], a[i]); }
}

@compute @workgroup_size(WG)
fn mul(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i < p.n) { y[i] = a[i] * b[(i / p.div) % p.len]; }
}

@compute @workgroup_size(WG)
fn scale(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i < p.n) { y1[i] = p.s * a[(i / p.div) % p.len]; }
}

@compute @workgroup_size(WG)
fn add_assign(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i < p.n) { y1[i] = y1[i] + a[i]; }
}

@compute @workgroup_size(WG)
fn fill(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i < p.n) { y0[i] = p.s; }
}
