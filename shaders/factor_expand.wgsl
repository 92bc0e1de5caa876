// factor_expand.wgsl - y[m,n] += scale * sum_j u[m,j] pool[pick(m,j), n]
// Entries   : add
// Shapes    : y [M, N]  u [M, stride]  pool [P, N]
// Grid      : one invocation = four neighbouring columns of a row; folded to 2-D
// Prelude   : WG = 64; UNITS = 0 | 1;  fragments grid, slots
// Precision : accumulates f32
// Limits    : 5 bindings
// Cost      : 2*M*N*slots flop, 8*M*N + 4*P*N bytes (memory bound)
// CPU       : src/ops/factor_expand.rs
struct Params {
  rows: u32, n: u32, slots: u32, stride: u32, first: u32, scale: f32,
  s_base: u32, s_step: u32, s_k: u32, s_block: u32, s_pool_rows: u32,
}
@group(0) @binding(0) var<storage, read> u: array<f32>;
@group(0) @binding(1) var<storage, read> pool: array<f32>;
@group(0) @binding(2) var<storage, read> idx: array<u32>;
@group(0) @binding(3) var<storage, read> row_unit: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn add(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let item = linear_group(w, g) * WG + l;
  let quads = (p.n + 3u) / 4u;
  let row = item / quads;
  if (row >= p.rows) { return; }
  let col = (item % quads) * 4u;
  let unit = unit_of(row);
  var update = vec4<f32>(0.0);
  for (var j = 0u; j < p.slots; j++) {
    let c = u[row * p.stride + p.first + j];
    let at = pick(unit, j) * p.n;
    for (var q = 0u; q < 4u; q++) { update[q] = fma(c, pool[at + min(col + q, p.n - 1u)], update[q]); }
  }
  for (var q = 0u; q < 4u; q++) {
    if (col + q < p.n) { y[row * p.n + col + q] = fma(p.scale, update[q], y[row * p.n + col + q]); }
  }
}
