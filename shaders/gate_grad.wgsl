// gate_grad.wgsl - dg[l,g,k] = sum over rows m of unit g and rows q of the block of u[m,j] v[m,j]
// Entries   : unit (one workgroup = one gate), token (one invocation = one gate)
// Shapes    : u, v [M, L*K*block]  start [G+1]  dg [L, G, K]
// Grid      : L*G*K workgroups (unit), ceil(L*G*K / WG) (token), folded to 2-D
// Prelude   : WG = 64;  fragments grid, sum
// Precision : accumulates f32; unit: WG partial sums, then a tree
// Limits    : 4*WG B shared; 4 bindings
// Cost      : 2*M*slots flop, 8*M*slots bytes (memory bound)
// CPU       : src/ops/gate_grad.rs
struct Params { linears: u32, units: u32, k: u32, block: u32 }
@group(0) @binding(0) var<storage, read> u: array<f32>;
@group(0) @binding(1) var<storage, read> v: array<f32>;
@group(0) @binding(2) var<storage, read> start: array<u32>;
@group(0) @binding(3) var<storage, read_write> dg: array<f32>;

// Column of the first slot of a gate, in rows of L*K*block.
fn column(item: u32) -> u32 {
  let l = item / (p.units * p.k);
  return (l * p.k + item % p.k) * p.block;
}

fn row_dot(row: u32, col: u32) -> f32 {
  let at = row * p.linears * p.k * p.block + col;
  var sum = 0.0;
  for (var q = 0u; q < p.block; q++) { sum = fma(u[at + q], v[at + q], sum); }
  return sum;
}

@compute @workgroup_size(WG)
fn unit(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let group = linear_group(w, g);
  let item = min(group, p.linears * p.units * p.k - 1u);
  let unit = item / p.k % p.units;
  var sum = 0.0;
  for (var row = start[unit] + l; row < start[unit + 1u]; row += WG) { sum += row_dot(row, column(item)); }
  sum = workgroup_sum(sum, l);
  if (l == 0u && group == item) { dg[item] = sum; }
}

@compute @workgroup_size(WG)
fn token(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let item = linear_group(w, g) * WG + l;
  if (item < p.linears * p.units * p.k) { dg[item] = row_dot(item / p.k % p.units, column(item)); }
}
