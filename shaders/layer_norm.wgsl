// layer_norm.wgsl - y[n,d] = (x[n,d] - mean[n]) * inv_std[n] * w[d] + b[d],  inv_std[n] = 1/sqrt(var_d x + eps)
// Entries   : forward, backward_x (dx = inv_std (w dy - mean(w dy) - xhat mean(w dy xhat)))
// Shapes    : x, y, dy, dx [N, D]  w, b [D]  stats [N, 2] = (mean, inv_std)        (row-major, contiguous)
// Grid      : N workgroups folded to 2-D; one workgroup = one row
// Prelude   : WG = 64 | 256 (power of two)
// Precision : accumulates f32; the variance is taken around the mean, in a second pass
// Limits    : 4*WG B shared; 5 bindings; no subgroups
// Cost      : forward 7*N*D flop, 8*N*D bytes; backward_x 10*N*D flop, 12*N*D bytes (memory bound)
// Source    : Ba et al. 2016, arXiv:1607.06450        CPU: src/ops/layer_norm.rs
struct Params { n: u32, d: u32, eps: f32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read_write> stats: array<f32>;
@group(0) @binding(2) var<storage, read> kept: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let row = linear_group(wid, g);
  let live = row < p.n;
  let base = select(0u, row, live) * p.d;
  var sum = 0.0;
  for (var k = l; k < p.d; k += WG) { sum += x[base + k]; }
  let mean = workgroup_sum(sum, l) / f32(p.d);
  var square = 0.0;
  for (var k = l; k < p.d; k += WG) {
    let c = x[base + k] - mean;
    square = fma(c, c, square);
  }
  let scale = inverseSqrt(workgroup_sum(square, l) / f32(p.d) + p.eps);
  if (live) {
    for (var k = l; k < p.d; k += WG) { y[base + k] = fma((x[base + k] - mean) * scale, w[k], b[k]); }
    if (l == 0u) {
      stats[2u * row] = mean;
      stats[2u * row + 1u] = scale;
    }
  }
}

@compute @workgroup_size(WG)
fn backward_x(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let row = linear_group(wid, g);
  let live = row < p.n;
  let r = select(0u, row, live);
  let base = r * p.d;
  let mean = kept[2u * r];
  let scale = kept[2u * r + 1u];
  var sum = 0.0;
  var dot = 0.0;
  for (var k = l; k < p.d; k += WG) {
    let q = w[k] * dy[base + k];
    sum += q;
    dot = fma(q, (x[base + k] - mean) * scale, dot);
  }
  sum = workgroup_sum(sum, l) / f32(p.d);
  dot = workgroup_sum(dot, l) / f32(p.d);
  if (live) {
    for (var k = l; k < p.d; k += WG) {
      let xhat = (x[base + k] - mean) * scale;
      dx[base + k] = scale * (fma(w[k], dy[base + k], -sum) - xhat * dot);
    }
  }
}
