// softmax.wgsl - y[n,d] = e^(x[n,d] - m[n]) / sum_d e^(x[n,d] - m[n]),  m[n] = max_d x[n,d]
// Entries   : forward, backward (dx = y (dy - sum_d y dy)); log_forward (y[n,d] = x[n,d] - m[n] - ln sum_d
//             e^(x[n,d] - m[n])), log_backward (dx = dy - e^y sum_d dy)
// Shapes    : x, y, dy, dx [N, D]        (row-major, contiguous)
// Grid      : N workgroups folded to 2-D; one workgroup = one row
// Prelude   : WG = 64 | 256 (power of two)
// Precision : accumulates f32; exp of non-positive numbers only
// Limits    : 4*WG B shared; 3 bindings; no subgroups
// Cost      : forward 4*N*D flop, 8*N*D bytes (the row is read three times, twice from cache); backward 4*N*D flop,
//             12*N*D bytes (memory bound)
// CPU       : src/ops/softmax.rs
struct Params { n: u32, d: u32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(0) var<storage, read> out: array<f32>;
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read_write> dx: array<f32>;

// A row's maximum, and the sum of e^(x - maximum).
struct Exponents { top: f32, sum: f32 }

fn exponents(base: u32, l: u32) -> Exponents {
  var top = -3.4028234e38;
  for (var k = l; k < p.d; k += WG) { top = max(top, x[base + k]); }
  top = workgroup_max(top, l);
  var sum = 0.0;
  for (var k = l; k < p.d; k += WG) { sum += exp(x[base + k] - top); }
  return Exponents(top, workgroup_sum(sum, l));
}

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let row = linear_group(wid, g);
  let live = row < p.n;
  let base = select(0u, row, live) * p.d;
  let e = exponents(base, l);
  let scale = 1.0 / e.sum;
  if (live) {
    for (var k = l; k < p.d; k += WG) { y[base + k] = exp(x[base + k] - e.top) * scale; }
  }
}

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let row = linear_group(wid, g);
  let live = row < p.n;
  let base = select(0u, row, live) * p.d;
  var dot = 0.0;
  for (var k = l; k < p.d; k += WG) { dot = fma(out[base + k], dy[base + k], dot); }
  dot = workgroup_sum(dot, l);
  if (live) {
    for (var k = l; k < p.d; k += WG) { dx[base + k] = out[base + k] * (dy[base + k] - dot); }
  }
}

@compute @workgroup_size(WG)
fn log_forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let row = linear_group(wid, g);
  let live = row < p.n;
  let base = select(0u, row, live) * p.d;
  let e = exponents(base, l);
  let log_sum = log(e.sum);
  if (live) {
    for (var k = l; k < p.d; k += WG) { y[base + k] = x[base + k] - e.top - log_sum; }
  }
}

@compute @workgroup_size(WG)
fn log_backward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let row = linear_group(wid, g);
  let live = row < p.n;
  let base = select(0u, row, live) * p.d;
  var sum = 0.0;
  for (var k = l; k < p.d; k += WG) { sum += dy[base + k]; }
  sum = workgroup_sum(sum, l);
  if (live) {
    for (var k = l; k < p.d; k += WG) { dx[base + k] = dy[base + k] - exp(out[base + k]) * sum; }
  }
}
