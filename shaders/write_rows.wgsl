// write_rows.wgsl - y[b, at .. at + S] = c[b]
// Entries   : forward
// Shapes    : c [B, S, R]  y [B, T, R], the other rows stay
// Grid      : one invocation = one element of c; folded to 2-D
// Prelude   : WG = 256;  fragment grid
// Precision : exact
// Limits    : 2 bindings
// Cost      : 0 flop, 8*B*S*R bytes (memory bound)
// CPU       : src/ops/write_rows.rs
struct Params { n: u32, at: u32, s: u32, t: u32, r: u32 }
@group(0) @binding(0) var<storage, read> c: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i >= p.n) { return; }
  let row = i / p.r;
  y[((row / p.s) * p.t + p.at + row % p.s) * p.r + i % p.r] = c[i];
}
