// append_rows.wgsl - y[b, 0..T] = a[b], y[b, T..T+S] = b_[b]
// Entries   : forward
// Shapes    : a [B, T, R]  b_ [B, S, R]  y [B, T+S, R]
// Grid      : one invocation = one element; folded to 2-D
// Prelude   : WG = 256;  fragment grid
// Precision : exact
// Limits    : 3 bindings
// Cost      : 0 flop, 8*B*(T+S)*R bytes (memory bound)
// CPU       : src/ops/append_rows.rs
struct Params { n: u32, t: u32, s: u32, r: u32 }
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b_: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i >= p.n) { return; }
  let row = i / p.r;
  let batch = row / (p.t + p.s);
  let at = row % (p.t + p.s);
  let c = i % p.r;
  if (at < p.t) { y[i] = a[(batch * p.t + at) * p.r + c]; } else { y[i] = b_[(batch * p.s + at - p.t) * p.r + c]; }
}
