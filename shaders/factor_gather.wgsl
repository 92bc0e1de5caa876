// factor_gather.wgsl - u[m,j] = scale * sum_c pool[pick(m,j), c] * drop(m,c) * x[m,c],  gated[m,j] = gate * u[m,j]
// Entries   : lane (one invocation = one row and slot), row (one workgroup = one row and slot)
// Shapes    : x [M, D]  pool [P, D]  gates [L, G, K]  u, gated [M, stride], columns first .. first + slots
// Grid      : ceil(M * slots / WG) (lane), M * slots (row), folded to 2-D
// Prelude   : WG = 64; GATE, DROP, UNITS = 0 | 1;  fragments grid, sum, slots, random, dropout
// Precision : accumulates f32; row: WG partial sums, then a tree
// Limits    : 4*WG B shared; 7 bindings
// Cost      : 2*M*slots*D flop, 4*(M*D + P*D + M*slots) bytes (memory bound)
// CPU       : src/ops/factor_gather.rs
struct Params {
  rows: u32, d: u32, slots: u32, stride: u32, first: u32, scale: f32,
  s_base: u32, s_step: u32, s_k: u32, s_block: u32, s_pool_rows: u32,
  g_base: u32, g_step: u32,
  key0: u32, key1: u32, drop_p: f32, keep: f32,
}
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> pool: array<f32>;
@group(0) @binding(2) var<storage, read> idx: array<u32>;
@group(0) @binding(3) var<storage, read> row_unit: array<u32>;
@group(0) @binding(4) var<storage, read> gates: array<f32>;
@group(0) @binding(5) var<storage, read_write> u: array<f32>;
@group(0) @binding(6) var<storage, read_write> gated: array<f32>;

fn x_at(i: u32) -> f32 {
  if (DROP == 1u) { return x[i] * drop_factor(i); }
  return x[i];
}

fn store(row: u32, j: u32, unit: u32, sum: f32) {
  let at = row * p.stride + p.first + j;
  u[at] = sum * p.scale;
  if (GATE == 1u) {
    let per = p.s_k * p.s_block;
    let gate = gates[p.g_base + (j / per) * p.g_step + unit * p.s_k + (j % per) / p.s_block];
    gated[at] = sum * p.scale * gate;
  }
}

@compute @workgroup_size(WG)
fn lane(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let item = linear_group(w, g) * WG + l;
  if (item >= p.rows * p.slots) { return; }
  let row = item / p.slots;
  let j = item % p.slots;
  let unit = unit_of(row);
  let a = pick(unit, j) * p.d;
  let b = row * p.d;
  var sum = vec4<f32>(0.0);
  let whole = p.d & ~3u;
  for (var c = 0u; c < whole; c += 4u) {
    let f = vec4<f32>(pool[a + c], pool[a + c + 1u], pool[a + c + 2u], pool[a + c + 3u]);
    sum = fma(f, vec4<f32>(x_at(b + c), x_at(b + c + 1u), x_at(b + c + 2u), x_at(b + c + 3u)), sum);
  }
  for (var c = whole; c < p.d; c++) { sum.x = fma(pool[a + c], x_at(b + c), sum.x); }
  store(row, j, unit, (sum.x + sum.y) + (sum.z + sum.w));
}

@compute @workgroup_size(WG)
fn row(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let item = min(linear_group(w, g), p.rows * p.slots - 1u);
  let row = item / p.slots;
  let j = item % p.slots;
  let unit = unit_of(row);
  let a = pick(unit, j) * p.d;
  var sum = 0.0;
  for (var c = l; c < p.d; c += WG) { sum = fma(pool[a + c], x_at(row * p.d + c), sum); }
  sum = workgroup_sum(sum, l);
  if (l == 0u && linear_group(w, g) == item) { store(row, j, unit, sum); }
}
