// reduce.wgsl - sums: of everything, of each column, of each row
// Entries   : total, rows (each leaves one row per block and runs again on these until one is left), last
// Shapes    : x [N, D] -> [ceil(ND / CHUNK)] | [ceil(N / ROWS), D] | [N]
// Grid      : total: one workgroup = one chunk of CHUNK elements; rows: one invocation = one column of a block of
//             ROWS rows; last: one workgroup = one row; all folded to 2-D
// Prelude   : WG = 256 (power of two)
// Precision : accumulates f32; a thread sums CHUNK/WG or ROWS values, then a tree over WG or the next pass
// Limits    : 4*WG B shared; 2 bindings
// Cost      : N*D flop, 4*N*D bytes (memory bound)
// CPU       : src/ops/reduce.rs
struct Params { n: u32, d: u32 }
const CHUNK: u32 = 4096u;
const ROWS: u32 = 256u;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn total(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let group = linear_group(w, g);
  var sum = 0.0;
  for (var k = l; k < CHUNK; k += WG) {
    let i = group * CHUNK + k;
    if (i < p.n) { sum += x[i]; }
  }
  sum = workgroup_sum(sum, l);
  if (l == 0u && (group == 0u || group * CHUNK < p.n)) { y[group] = sum; }
}

@compute @workgroup_size(WG)
fn rows(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  let first = i / p.d * ROWS;
  if (first >= max(p.n, 1u)) { return; }
  var sum = 0.0;
  for (var row = first; row < min(first + ROWS, p.n); row++) { sum += x[row * p.d + i % p.d]; }
  y[i] = sum;
}

@compute @workgroup_size(WG)
fn last(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let row = linear_group(w, g);
  let live = row < p.n;
  var sum = 0.0;
  for (var k = l; k < p.d; k += WG) {
    if (live) { sum += x[row * p.d + k]; }
  }
  sum = workgroup_sum(sum, l);
  if (l == 0u && live) { y[row] = sum; }
}
