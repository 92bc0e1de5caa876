// fused_ba_matmul.wgsl - y[m,n] (+)= sum_k x[m,k] W[n,k] + bias[n] + scale * sum_j u[m,j] pool[pick(m,j), n]
//                        (TB = 0: W[k,n] instead of W[n,k], the product of the backward pass)
// Entries   : direct, tile, vector (common/product.wgsl), coop (common/product_coop.wgsl)
// Shapes    : x = a [M, a_stride]  W [rows, w_words]  y [M, y_stride]  u [M, u_stride]  pool [P, y_stride]  bias [N]
// Grid      : ceil(M / rows) * ceil(N / columns) workgroups folded to 2-D; one = one tile of y
// Prelude   : R, V, X, Y, LANES (src/ops/product.rs); TA = 0; TB, EDGE, EXPAND, BIAS, ADD, DROP, UNITS = 0 | 1;
//             fragments product, read4, load4_<format>, grid, half, slots, random, dropout
// Precision : accumulates f32; coop rounds x and W to f16
// Limits    : tile: 8704 B shared; vector: 8192 B shared; 64 invocations; coop: 13568 B shared, up to 256
//             invocations; 8 bindings
// Cost      : 2*M*N*K + 2*M*N*slots flop, 4*(M*K + N*K + M*N) bytes (compute bound for M > 32)
// Source    : factored LoRA products, DESIGN: the expand joins the frozen product's epilogue
// CPU       : src/ops/fused_ba_matmul.rs
struct Params {
  m: u32, n: u32, k: u32, groups: u32, a_stride: u32, a_first: u32, w_words: u32, y_stride: u32, y_first: u32,
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

// Four neighbouring values of a pool row.
fn factor_at(unit: u32, j: u32, col: vec4<u32>) -> vec4<f32> {
  let at = pick(unit, j) * p.y_stride + p.y_first + col;
  return vec4<f32>(pool[at.x], pool[at.y], pool[at.z], pool[at.w]);
}

// The low-rank update of a block of rows. Rows of one unit share their factors.
fn expand(row: u32, col: u32) -> mat4x4<f32> {
  let rows = min(vec4<u32>(row, row + 1u, row + 2u, row + 3u), vec4<u32>(p.m - 1u));
  let at = rows * p.u_stride + p.u_first;
  let j4 = min(vec4<u32>(col, col + 1u, col + 2u, col + 3u), vec4<u32>(p.n - 1u));
  var sum = mat4x4<f32>();
  let unit = unit_of(row);
  if (BLOCK == 1u || unit == unit_of(rows.w)) {
    for (var j = 0u; j < p.slots; j++) {
      let f = factor_at(unit, j, j4);
      sum[0] = fma(vec4<f32>(u[at.x + j]), f, sum[0]);
      if (BLOCK > 1u) {
        sum[1] = fma(vec4<f32>(u[at.y + j]), f, sum[1]);
        sum[2] = fma(vec4<f32>(u[at.z + j]), f, sum[2]);
        sum[3] = fma(vec4<f32>(u[at.w + j]), f, sum[3]);
      }
    }
  } else {
    for (var i = 0u; i < 4u; i++) {
      let own = unit_of(rows[i]);
      for (var j = 0u; j < p.slots; j++) { sum[i] = fma(vec4<f32>(u[at[i] + j]), factor_at(own, j, j4), sum[i]); }
    }
  }
  return sum;
}

// Adds bias and the low-rank update to a block, and stores it.
fn finish(batch: u32, row: u32, col: u32, values: mat4x4<f32>) {
  if (row >= p.m || col >= p.n) { return; }
  var v = values;
  var update: mat4x4<f32>;
  if (EXPAND == 1u) { update = expand(row, col); }
  for (var i = 0u; i < min(BLOCK, p.m - row); i++) {
    let at = (row + i) * p.y_stride + p.y_first + col;
    var line = v[i];
    if (EXPAND == 1u) {
      let drop = vec4<f32>(drop_factor(at), drop_factor(at + 1u), drop_factor(at + 2u), drop_factor(at + 3u));
      line = fma(p.scale * drop, update[i], line);
    }
    for (var j = 0u; j < min(4u, p.n - col); j++) {
      var value = line[j];
      if (BIAS == 1u) { value += bias[p.y_first + col + j]; }
      if (ADD == 1u) { value += y[at + j]; }
      y[at + j] = value;
    }
  }
}
