// factor_scatter.wgsl - d_pool[f,c] = scale * sum over (m,j) with pick(m,j) = f of coef[m,j] * drop(m,c) * rows[m,c]
// Entries   : lists (sorts the choices by factor), sum (one segment per factor, in row order),
//             block (four columns of every factor, unit by unit, for whole vectors: few large invocations)
// Shapes    : idx [L, P, G, K] -> starts [L, P, E+1], pairs [L, P, G*K];
//             coef [M, stride]  rows [M, D]  start [G+1] -> out [F, D]
// Grid      : lists: one invocation = one (linear, side, factor); sum: [ceil(D/32), F, 1];
//             block: one invocation = 4 columns of one linear
// Prelude   : WG = 64 (lists), 256 (sum), 16 (block); DROP, UNITS = 0 | 1;  fragments grid, random, dropout, slots
// Precision : accumulates f32 in a fixed order of rows: the same bits on every run
// Limits    : 6 bindings; sum: 1024 B shared, 256 invocations
// Cost      : lists: L*P*E*G*K compares; sum: 2*M*slots*D flop, 4*(M*D*slots + F*D) bytes (memory bound)
// CPU       : src/ops/factor_scatter/mod.rs
struct Params {
  factors: u32, units: u32, groups: u32,
  d: u32, out_rows: u32, stride: u32, first: u32, sides: u32, side: u32, scale: f32,
  s_base: u32, s_step: u32, s_k: u32, s_block: u32, s_pool_rows: u32,
  key0: u32, key1: u32, drop_p: f32, keep: f32,
}
@group(0) @binding(0) var<storage, read_write> starts_out: array<u32>;
@group(0) @binding(1) var<storage, read_write> pairs_out: array<u32>;
@group(0) @binding(2) var<storage, read> idx: array<u32>;

@group(0) @binding(0) var<storage, read> coef: array<f32>;
@group(0) @binding(1) var<storage, read> rows: array<f32>;
@group(0) @binding(2) var<storage, read> starts: array<u32>;
@group(0) @binding(3) var<storage, read> pairs: array<u32>;
@group(0) @binding(4) var<storage, read> unit_start: array<u32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

@group(0) @binding(0) var<storage, read> coef4: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> rows4: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> row_unit: array<u32>;
@group(0) @binding(5) var<storage, read_write> out4: array<vec4<f32>>;

@compute @workgroup_size(WG)
fn lists(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let item = linear_group(w, g) * WG + l;
  if (item >= p.groups * p.factors) { return; }
  let group = item / p.factors;
  let factor = item % p.factors;
  let n = p.units * p.s_k;
  let base = group * n;
  var before = 0u;
  for (var i = 0u; i < n; i++) { before += u32(min(idx[base + i], p.factors - 1u) < factor); }
  let table = group * (p.factors + 1u);
  starts_out[table + factor] = before;
  if (factor == 0u) { starts_out[table + p.factors] = n; }
  var at = before;
  for (var i = 0u; i < n; i++) {
    if (min(idx[base + i], p.factors - 1u) == factor) {
      pairs_out[base + at] = i;
      at++;
    }
  }
}

// A workgroup sums COLUMNS columns of a factor in SLICES slices of its rows, and the slices in order.
const COLUMNS: u32 = 32u;
const SLICES: u32 = WG / COLUMNS;
var<workgroup> slices: array<f32, WG>;

@compute @workgroup_size(WG)
fn sum(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let f = w.z * g.y + w.y;
  if (f >= p.out_rows) { return; }
  let column = w.x * COLUMNS + l % COLUMNS;
  let c = min(column, p.d - 1u);
  let slice = l / COLUMNS;
  let linear = p.first + f / p.s_pool_rows;
  let factor = (f % p.s_pool_rows) / p.s_block;
  let q = f % p.s_block;
  let group = linear * p.sides + p.side;
  let table = group * (p.factors + 1u) + factor;
  let base = linear * p.s_k * p.s_block + q;
  // Units of many rows are sliced by their rows, and units of one row by the list of them.
  let step = select(SLICES, 1u, UNITS == 1u);
  var acc = 0.0;
  for (var i = starts[table] + select(slice, 0u, UNITS == 1u); i < starts[table + 1u]; i += step) {
    let pair = pairs[group * p.units * p.s_k + i];
    let unit = pair / p.s_k;
    let at = base + (pair % p.s_k) * p.s_block;
    var row = unit;
    var end = unit + 1u;
    if (UNITS == 1u) {
      row = unit_start[unit] + slice;
      end = unit_start[unit + 1u];
    }
    for (; row < end; row += SLICES) {
      var v = rows[row * p.d + c];
      if (DROP == 1u) { v *= drop_factor(row * p.d + c); }
      acc = fma(coef[row * p.stride + at], v, acc);
    }
  }
  slices[l] = acc;
  workgroupBarrier();
  if (slice > 0u || column >= p.d) { return; }
  var total = 0.0;
  for (var s = 0u; s < SLICES; s++) { total += slices[s * COLUMNS + l]; }
  out[f * p.d + column] = p.scale * total;
}

// Nobody else has these columns: what a unit adds goes straight to the factors that it chose.
@compute @workgroup_size(WG)
fn block(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let across = p.d / 4u;
  let item = linear_group(w, g) * WG + l;
  let linear = item / across;
  if (linear * p.s_pool_rows >= p.out_rows) { return; }
  let c = item % across;
  for (var f = 0u; f < p.s_pool_rows; f++) { out4[(linear * p.s_pool_rows + f) * across + c] = vec4<f32>(0.0); }
  let slots = p.s_k * p.s_block;
  for (var unit = 0u; unit < p.units; unit++) {
    var start = unit;
    var end = unit + 1u;
    if (UNITS == 1u) {
      start = unit_start[unit];
      end = unit_start[unit + 1u];
    }
    for (var j = 0u; j < slots; j += 4u) {
      var sum = mat4x4<f32>();
      for (var row = start; row < end; row++) {
        let at = row * across + c;
        var v = rows4[at];
        if (DROP == 1u) { v *= drop_factor4(4u * at); }
        let k = coef4[(row * p.stride + (p.first + linear) * slots + j) / 4u];
        sum[0] = fma(vec4<f32>(k.x), v, sum[0]);
        sum[1] = fma(vec4<f32>(k.y), v, sum[1]);
        sum[2] = fma(vec4<f32>(k.z), v, sum[2]);
        sum[3] = fma(vec4<f32>(k.w), v, sum[3]);
      }
      for (var q = 0u; q < 4u; q++) {
        let at = pick(unit, linear * slots + j + q) * across + c;
        out4[at] = fma(vec4<f32>(p.scale), sum[q], out4[at]);
      }
    }
  }
}
