// pool_rows.wgsl - h[g,c] = sum over the rows m of unit g of weight[m] x[m,c];  dx[m,c] = weight[m] dh[unit(m),c]
// Entries   : forward, backward
// Shapes    : x, dx [M, D]  weight [M]  start [G+1]  row_unit [M]  h, dh [G, D]
// Grid      : forward: one invocation = one (unit, column); backward: one invocation = one element; folded to 2-D
// Prelude   : WG = 64
// Precision : accumulates f32 in row order
// Limits    : 4 bindings
// Cost      : 2*M*D flop, 4*M*D bytes (memory bound)
// CPU       : src/ops/pool_rows.rs
struct Params { units: u32, rows: u32, d: u32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> start: array<u32>;
@group(0) @binding(2) var<storage, read> row_unit: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i >= p.units * p.d) { return; }
  let unit = i / p.d;
  let c = i % p.d;
  var sum = 0.0;
  for (var row = start[unit]; row < start[unit + 1u]; row++) { sum = fma(weight[row], x[row * p.d + c], sum); }
  y[i] = sum;
}

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i >= p.rows * p.d) { return; }
  let row = i / p.d;
  y[i] = weight[row] * x[row_unit[row] * p.d + i % p.d];
}
