// pool_rows.wgsl - h[g,c] = sum over the rows m of unit g of weight[m] x[m,c];  dx[m,c] = weight[m] dh[unit(m),c]
// Entries   : forward, backward
// Shapes    : x, dx [M, D]  weight [M]  start [G+1]  row_unit [M]  h, dh [G, D]
// Grid      : forward: one workgroup = 32 columns of a unit; backward: one invocation = one element; folded to 2-D
// Prelude   : WG = 256 (forward), 64 (backward)
// Precision : accumulates f32 in a fixed order of rows
// Limits    : 4 bindings; forward: 1024 B shared, 256 invocations
// Cost      : 2*M*D flop, 4*M*D bytes (memory bound)
// CPU       : src/ops/pool_rows.rs
struct Params { units: u32, rows: u32, d: u32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> start: array<u32>;
@group(0) @binding(2) var<storage, read> row_unit: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// A workgroup sums COLUMNS columns of a unit in SLICES slices of its rows, and the slices in order.
const COLUMNS: u32 = 32u;
const SLICES: u32 = WG / COLUMNS;
var<workgroup> slices: array<f32, WG>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let group = linear_group(w, g);
  let across = (p.d + COLUMNS - 1u) / COLUMNS;
  let unit = group / across;
  if (unit >= p.units) { return; }
  let column = group % across * COLUMNS + l % COLUMNS;
  let c = min(column, p.d - 1u);
  let slice = l / COLUMNS;
  var sum = 0.0;
  for (var row = start[unit] + slice; row < start[unit + 1u]; row += SLICES) { sum = fma(weight[row], x[row * p.d + c], sum); }
  slices[l] = sum;
  workgroupBarrier();
  if (slice > 0u || column >= p.d) { return; }
  var total = 0.0;
  for (var s = 0u; s < SLICES; s++) { total += slices[s * COLUMNS + l]; }
  y[unit * p.d + column] = total;
}

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i >= p.rows * p.d) { return; }
  let row = i / p.d;
  y[i] = weight[row] * x[row_unit[row] * p.d + i % p.d];
}
