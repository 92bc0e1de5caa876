// pick.wgsl - y[m,j] = x[m,index[m,j]];  backward: dx[m,e] = sum over j with index[m,j] = e of dy[m,j]
// Entries   : forward, backward
// Shapes    : x, dx [M, E]  index, y, dy [M, K]        (row-major, contiguous)
// Grid      : one invocation = one element of the output, folded to 2-D
// Prelude   : WG = 256
// Precision : forward copies; backward sums in f32 in the order of j
// Limits    : 3 bindings; an index of E or more gives 0 and has no gradient
// Cost      : forward 12*M*K bytes; backward M*E*K comparisons, 4*M*(E + 2*K) bytes (indices of a row from cache)
// CPU       : src/ops/pick.rs
struct Params { n: u32, e: u32, k: u32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> index: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(wid, g) * WG + l;
  if (i >= p.n) { return; }
  var value = 0.0;
  if (index[i] < p.e) { value = x[i / p.k * p.e + index[i]]; }
  y[i] = value;
}

@group(0) @binding(0) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(wid, g) * WG + l;
  if (i >= p.n) { return; }
  let first = i / p.e * p.k;
  var sum = 0.0;
  for (var j = first; j < first + p.k; j++) {
    if (index[j] == i % p.e) { sum += dy[j]; }
  }
  dx[i] = sum;
}
