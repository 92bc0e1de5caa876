// factor_gather.wgsl - u[m,j] = scale * sum_c pool[pick(m,j), c] * drop(m,c) * x[m,c],  gated[m,j] = gate * u[m,j]
// Entries   : block (one invocation = 4 rows and 4 slots; D is a multiple of 4), row (one workgroup = one row and slot)
// Shapes    : x [M, D]  pool [P, D]  gates [L, G, K]  u, gated [M, stride], columns first .. first + slots
// Grid      : ceil(ceil(M / 4) * ceil(slots / 4) / WG) (block), M * slots (row), folded to 2-D
// Prelude   : WG = 32 (block), 64 (row); GATE, DROP, UNITS = 0 | 1;  fragments grid, sum, slots, random, dropout
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
@group(0) @binding(0) var<storage, read> x4: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> pool4: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> idx: array<u32>;
@group(0) @binding(3) var<storage, read> row_unit: array<u32>;
@group(0) @binding(4) var<storage, read> gates: array<f32>;
@group(0) @binding(5) var<storage, read_write> u: array<f32>;
@group(0) @binding(6) var<storage, read_write> gated: array<f32>;

fn store(row: u32, j: u32, unit: u32, sum: f32) {
  let at = row * p.stride + p.first + j;
  u[at] = sum * p.scale;
  if (GATE == 1u) {
    let per = p.s_k * p.s_block;
    let gate = gates[p.g_base + (j / per) * p.g_step + unit * p.s_k + (j % per) / p.s_block];
    gated[at] = sum * p.scale * gate;
  }
}

// Four values of a row of x, with c counted in vectors.
fn x_block(row: u32, c: u32) -> vec4<f32> {
  let at = row * (p.d / 4u) + c;
  if (DROP == 0u) { return x4[at]; }
  return x4[at] * drop_factor4(4u * at);
}

// Four values of each of four pool rows: one vector for each value.
fn pool_block(a: vec4<u32>, c: u32) -> mat4x4<f32> {
  let at = a * (p.d / 4u) + c;
  return transpose(mat4x4<f32>(pool4[at.x], pool4[at.y], pool4[at.z], pool4[at.w]));
}

fn picks(unit: u32, j: u32) -> vec4<u32> {
  let last = p.slots - 1u;
  return vec4<u32>(pick(unit, j), pick(unit, min(j + 1u, last)), pick(unit, min(j + 2u, last)), pick(unit, min(j + 3u, last)));
}

fn add_line(x: vec4<f32>, f: mat4x4<f32>, sum: vec4<f32>) -> vec4<f32> {
  return fma(vec4<f32>(x.w), f[3], fma(vec4<f32>(x.z), f[2], fma(vec4<f32>(x.y), f[1], fma(vec4<f32>(x.x), f[0], sum))));
}

// Rows of one unit share their factors.
@compute @workgroup_size(WG)
fn block(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let across = (p.slots + 3u) / 4u;
  let item = linear_group(w, g) * WG + l;
  let row = item / across * 4u;
  if (row >= p.rows) { return; }
  let j = item % across * 4u;
  let rows = min(vec4<u32>(row, row + 1u, row + 2u, row + 3u), vec4<u32>(p.rows - 1u));
  let unit = unit_of(row);
  let a = picks(unit, j);
  var sum = mat4x4<f32>();
  if (unit == unit_of(rows.w)) {
    for (var c = 0u; c < p.d / 4u; c++) {
      let f = pool_block(a, c);
      sum[0] = add_line(x_block(rows.x, c), f, sum[0]);
      sum[1] = add_line(x_block(rows.y, c), f, sum[1]);
      sum[2] = add_line(x_block(rows.z, c), f, sum[2]);
      sum[3] = add_line(x_block(rows.w, c), f, sum[3]);
    }
  } else {
    for (var i = 0u; i < 4u; i++) {
      let own = picks(unit_of(rows[i]), j);
      var line = vec4<f32>(0.0);
      for (var c = 0u; c < p.d / 4u; c++) { line = add_line(x_block(rows[i], c), pool_block(own, c), line); }
      sum[i] = line;
    }
  }
  for (var i = 0u; i < min(4u, p.rows - row); i++) {
    let line = sum[i];
    for (var q = 0u; q < min(4u, p.slots - j); q++) { store(row + i, j + q, unit_of(row + i), line[q]); }
  }
}

@compute @workgroup_size(WG)
fn row(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let item = min(linear_group(w, g), p.rows * p.slots - 1u);
  let row = item / p.slots;
  let j = item % p.slots;
  let unit = unit_of(row);
  let a = pick(unit, j) * p.d;
  var sum = 0.0;
  for (var c = l; c < p.d; c += WG) { sum = fma(pool[a + c], x[row * p.d + c] * drop_factor(row * p.d + c), sum); }
  sum = workgroup_sum(sum, l);
  if (l == 0u && linear_group(w, g) == item) { store(row, j, unit, sum); }
}
