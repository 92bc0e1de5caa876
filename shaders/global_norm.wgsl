// global_norm.wgsl - norm = sqrt(sum over tensors and elements of x^2);  factor = min(1, max_norm / (norm + 1e-6))
// Entries   : squares (sums of chunks of one tensor), root (of the sum of all chunks), clip (the factor)
// Shapes    : x [N]  partial [sum over tensors of ceil(N / CHUNK)]  norm, factor []
// Grid      : squares: one workgroup = one chunk of CHUNK elements, folded to 2-D; root, clip: one workgroup
// Prelude   : WG = 256 (power of two)
// Precision : accumulates f32 in a fixed order
// Limits    : 4*WG B shared; 2 bindings; no subgroups
// Cost      : 2*N flop, 4*N bytes (memory bound)
// Source    : Pascanu et al. 2012, arXiv:1211.5063        CPU: src/ops/global_norm.rs
struct Params { n: u32, offset: u32, max_norm: f32 }
const CHUNK: u32 = 4096u;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn squares(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let group = linear_group(w, g);
  let chunks = (p.n - 1u) / CHUNK + 1u;
  let live = group < chunks;
  let start = select(0u, group, live) * CHUNK;
  let count = min(CHUNK, p.n - start);
  var sum = 0.0;
  for (var k = l; k < count; k += WG) { sum = fma(x[start + k], x[start + k], sum); }
  sum = workgroup_sum(sum, l);
  if (live && l == 0u) { y[p.offset + group] = sum; }
}

@compute @workgroup_size(WG)
fn root(@builtin(local_invocation_index) l: u32) {
  var sum = 0.0;
  for (var k = l; k < p.n; k += WG) { sum += x[k]; }
  sum = workgroup_sum(sum, l);
  if (l == 0u) { y[0] = sqrt(sum); }
}

// A NaN stays one: it must not become a factor of 1.
@compute @workgroup_size(WG)
fn clip(@builtin(local_invocation_index) l: u32) {
  let f = p.max_norm / (x[0] + 1e-6);
  if (l == 0u) { y[0] = select(f, 1.0, f > 1.0); }
}
