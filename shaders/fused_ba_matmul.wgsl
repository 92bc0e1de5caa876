// fused_ba_matmul.wgsl - y[m,n] (+)= sum_k x[m,k] W[n,k] + bias[n] + scale * sum_j u[m,j] pool[pick(m,j), n]
//                        (TB = 0: W[k,n] instead of W[n,k], the product of the backward pass)
// Entries   : direct, tile, vector (common/product.wgsl), stream (common/product_stream.wgsl),
//             ahead (common/product_ahead.wgsl), coop (common/product_coop.wgsl)
// Shapes    : x = a [M, a_stride]  W [rows, w_words]  y [M, y_stride]  u [M, u_stride]  pool [P, y_stride]  bias [N]
// Grid      : ceil(M / rows) * ceil(N / columns) workgroups folded to 2-D; one = one tile of y
// Prelude   : R, V, X, Y, LANES (src/engine/product.rs); TA = 0; TB, EDGE, EXPAND, BIAS, ADD, DROP, UNITS = 0 | 1;
//             fragments product, read4, load4_<format>, grid, half, slots, random, dropout
// Precision : accumulates f32; coop rounds x and W to f16
// Limits    : tile, ahead: 8704 B shared; vector, stream: 8192 B shared; 64 invocations; coop: 13312 B shared, up to 256
//             invocations; 8 bindings
// Cost      : 2*M*N*K + 2*M*N*slots flop, 4*(M*K + N*K + M*N) bytes (compute bound for M > 32)
// Source    : factored LoRA products; the expand joins the frozen product's epilogue
// CPU       : src/ops/fused_ba_matmul/mod.rs
struct Params {
  m: u32, n: u32, k: u32, groups: u32, a_stride: u32, a_first: u32, w_first: u32, w_words: u32, y_stride: u32, y_first: u32,
  scale: f32, u_stride: u32, u_first: u32, slots: u32,
  s_base: u32, s_step: u32, s_k: u32, s_block: u32, s_pool_rows: u32,
  key0: u32, key1: u32, drop_p: f32, keep: f32,
}
@group(0) @binding(1) var<storage, read> w: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> u: array<f32>;
@group(0) @binding(5) var<storage, read> pool: array<f32>;
@group(0) @binding(6) var<storage, read> idx: array<u32>;
@group(0) @binding(7) var<storage, read> row_unit: array<u32>;

fn rows_end() -> u32 { return p.m; }
fn a_start(batch: u32, row: u32) -> u32 { return p.a_first + min(row, p.m - 1u) * p.a_stride; }

// Four neighbouring values of a pool row.
fn factor_at(unit: u32, j: u32, col: vec4<u32>) -> vec4<f32> {
  let at = pick(unit, j) * p.y_stride + p.y_first + col;
  return vec4<f32>(pool[at.x], pool[at.y], pool[at.z], pool[at.w]);
}

// The low-rank update of a row at four columns; its values of u start at `at`.
fn expand_row(unit: u32, at: u32, col: vec4<u32>) -> vec4<f32> {
  var sum = vec4<f32>(0.0);
  for (var j = 0u; j < p.slots; j++) { sum = fma(vec4<f32>(u[at + j]), factor_at(unit, j, col), sum); }
  return sum;
}

// The low-rank update of a block of rows. Rows of one unit share their factors.
fn expand(row: u32, col: u32) -> mat4x4<f32> {
  let rows = min(vec4<u32>(row, row + 1u, row + 2u, row + 3u), vec4<u32>(p.m - 1u));
  let at = rows * p.u_stride + p.u_first;
  let j4 = min(vec4<u32>(col, col + 1u, col + 2u, col + 3u), vec4<u32>(p.n - 1u));
  let unit = unit_of(row);
  if (BLOCK == 1u) { return mat4x4<f32>(expand_row(unit, at.x, j4), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0)); }
  if (unit != unit_of(rows.w)) {
    return mat4x4<f32>(
      expand_row(unit, at.x, j4),
      expand_row(unit_of(rows.y), at.y, j4),
      expand_row(unit_of(rows.z), at.z, j4),
      expand_row(unit_of(rows.w), at.w, j4));
  }
  var sum = mat4x4<f32>();
  for (var j = 0u; j < p.slots; j++) {
    let f = factor_at(unit, j, j4);
    sum[0] = fma(vec4<f32>(u[at.x + j]), f, sum[0]);
    sum[1] = fma(vec4<f32>(u[at.y + j]), f, sum[1]);
    sum[2] = fma(vec4<f32>(u[at.z + j]), f, sum[2]);
    sum[3] = fma(vec4<f32>(u[at.w + j]), f, sum[3]);
  }
  return sum;
}

// Adds the low-rank update, the bias and what is there already to four values of a row, and stores those within n.
fn finish_row(row: u32, col: u32, values: vec4<f32>, update: vec4<f32>) {
  if (row >= p.m) { return; }
  let at = row * p.y_stride + p.y_first + col;
  let left = p.n - col;
  let offset = min(vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(left - 1u));
  var v = values;
  if (EXPAND == 1u) {
    v = fma(p.scale * drop_factor4_any(at), update, v);
  }
  if (BIAS == 1u) {
    let i = p.y_first + col + offset;
    v += vec4<f32>(bias[i.x], bias[i.y], bias[i.z], bias[i.w]);
  }
  if (ADD == 1u) {
    let i = at + offset;
    v += vec4<f32>(y[i.x], y[i.y], y[i.z], y[i.w]);
  }
  y[at] = v.x;
  if (left > 1u) { y[at + 1u] = v.y; }
  if (left > 2u) { y[at + 2u] = v.z; }
  if (left > 3u) { y[at + 3u] = v.w; }
}

fn finish(batch: u32, row: u32, col: u32, values: mat4x4<f32>) {
  if (row >= p.m || col >= p.n) { return; }
  var update: mat4x4<f32>;
  if (EXPAND == 1u) { update = expand(row, col); }
  finish_row(row, col, values[0], update[0]);
  if (BLOCK > 1u) {
    finish_row(row + 1u, col, values[1], update[1]);
    finish_row(row + 2u, col, values[2], update[2]);
    finish_row(row + 3u, col, values[3], update[3]);
  }
}
