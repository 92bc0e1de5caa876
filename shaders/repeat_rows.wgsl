// repeat_rows.wgsl - y[m*k+j, c] = x[m, c];  and its transpose y[m, c] = sum_j x[m*k+j, c]
// Entries   : repeat, group_sum
// Shapes    : [M, D] and [M*k, D]
// Grid      : one invocation = one element of y; folded to 2-D
// Prelude   : WG = 256;  fragment grid
// Precision : group_sum accumulates f32 in order
// Limits    : 2 bindings
// Cost      : repeat 0 flop, group_sum M*k*D flop; 4*M*D*(k+1) bytes (memory bound)
// CPU       : src/ops/repeat_rows.rs
struct Params { n: u32, d: u32, k: u32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn repeat(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i < p.n) { y[i] = x[i / p.d / p.k * p.d + i % p.d]; }
}

@compute @workgroup_size(WG)
fn group_sum(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i >= p.n) { return; }
  let at = i / p.d * p.k * p.d + i % p.d;
  var sum = 0.0;
  for (var j = 0u; j < p.k; j++) { sum += x[at + j * p.d]; }
  y[i] = sum;
}
