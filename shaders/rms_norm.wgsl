// rms_norm.wgsl - y[n,d] = x[n,d] * inv_rms[n] * w[d],  inv_rms[n] = 1/sqrt(mean_d x^2 + eps)
// Entries   : forward, backward_x
// Shapes    : x, y, dy, dx [N, D]  w [D]  inv_rms [N]        (row-major, contiguous)
// Grid      : N workgroups folded to 2-D; one workgroup = one row
// Prelude   : WG = 64 | 256 (power of two)
// Precision : accumulates f32
// Limits    : 4*WG B shared; 5 bindings; no subgroups
// Cost      : forward 4*N*D flop, 8*N*D bytes; backward_x 8*N*D flop, 12*N*D bytes (memory bound)
// Source    : Zhang & Sennrich 2019, arXiv:1910.07467        CPU: src/ops/rms_norm.rs
struct Params { n: u32, d: u32, eps: f32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> inv_rms: array<f32>;
@group(0) @binding(2) var<storage, read> inv: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let row = linear_group(wid, g);
  let live = row < p.n;
  let base = select(0u, row, live) * p.d;
  var sum = 0.0;
  for (var k = l; k < p.d; k += WG) { sum = fma(x[base + k], x[base + k], sum); }
  sum = workgroup_sum(sum, l);
  let scale = inverseSqrt(sum / f32(p.d) + p.eps);
  if (live) {
    for (var k = l; k < p.d; k += WG) { y[base + k] = x[base + k] * scale * w[k]; }
    if (l == 0u) { inv_rms[row] = scale; }
  }
}

// dx = inv * (w dy - x * inv^2 * mean(w dy x))
@compute @workgroup_size(WG)
fn backward_x(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let row = linear_group(wid, g);
  let live = row < p.n;
  let base = select(0u, row, live) * p.d;
  let scale = inv[select(0u, row, live)];
  var sum = 0.0;
  for (var k = l; k < p.d; k += WG) { sum = fma(w[k] * dy[base + k], x[base + k], sum); }
  sum = workgroup_sum(sum, l);
  let c = sum * scale * scale / f32(p.d);
  if (live) {
    for (var k = l; k < p.d; k += WG) { dx[base + k] = scale * fma(-c, x[base + k], w[k] * dy[base + k]); }
  }
}
