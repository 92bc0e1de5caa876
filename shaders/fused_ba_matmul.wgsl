// fused_ba_matmul.wgsl - y[m,n] (+)= sum_k x[m,k] W[n,k] + bias[n] + scale * sum_j u[m,j] pool[pick(m,j), n]
//                        (NT = 0: W[k,n] instead of W[n,k], the product of the backward pass)
// Entries   : direct (4x4 per invocation in registers), tile (64x64 tile in shared memory)
// Shapes    : x [M, x_stride]  W [rows, w_words]  y [M, y_stride]  u [M, u_stride]  pool [P, y_stride]  bias [N]
// Grid      : [ceil(N/32), ceil(M/32), 1] (direct), [ceil(N/64), ceil(M/64), 1] (tile)
// Prelude   : NT, EXPAND, BIAS, ADD, DROP, UNITS = 0 | 1;  fragments load_<format>, half, slots, random, dropout
// Precision : accumulates f32
// Limits    : tile: 8448 B shared; 8 bindings
// Cost      : 2*M*N*K + 2*M*N*slots flop, 4*(M*K + N*K + M*N) bytes (compute bound for M > 32)
// Source    : factored LoRA products, DESIGN: the expand joins the frozen product's epilogue
// CPU       : src/ops/fused_ba_matmul.rs
struct Params {
  m: u32, n: u32, k: u32, x_stride: u32, x_first: u32, y_stride: u32, y_first: u32, w_words: u32,
  scale: f32, u_stride: u32, u_first: u32, slots: u32,
  s_base: u32, s_step: u32, s_k: u32, s_block: u32, s_pool_rows: u32,
  key0: u32, key1: u32, drop_p: f32, keep: f32,
}
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> u: array<f32>;
@group(0) @binding(5) var<storage, read> pool: array<f32>;
@group(0) @binding(6) var<storage, read> idx: array<u32>;
@group(0) @binding(7) var<storage, read> row_unit: array<u32>;

fn x_at(row: u32, k: u32) -> f32 { return x[min(row, p.m - 1u) * p.x_stride + p.x_first + k]; }

fn w_at(col: u32, k: u32) -> f32 {
  let n = min(col, p.n - 1u);
  if (NT == 1u) { return load_w(n, k); }
  return load_w(k, n);
}

// Adds bias and the low-rank update to four neighbouring columns of a row, and stores them.
fn finish(row: u32, col: u32, product: vec4<f32>) {
  if (row >= p.m) { return; }
  var acc = product;
  if (EXPAND == 1u) {
    let unit = unit_of(row);
    var update = vec4<f32>(0.0);
    for (var j = 0u; j < p.slots; j++) {
      let c = u[row * p.u_stride + p.u_first + j];
      let at = pick(unit, j) * p.y_stride + p.y_first;
      for (var q = 0u; q < 4u; q++) { update[q] = fma(c, pool[at + min(col + q, p.n - 1u)], update[q]); }
    }
    for (var q = 0u; q < 4u; q++) {
      acc[q] = fma(p.scale * drop_factor(row * p.y_stride + p.y_first + col + q), update[q], acc[q]);
    }
  }
  for (var q = 0u; q < 4u; q++) {
    if (col + q < p.n) {
      let at = row * p.y_stride + p.y_first + col + q;
      var v = acc[q];
      if (BIAS == 1u) { v += bias[p.y_first + col + q]; }
      if (ADD == 1u) { v += y[at]; }
      y[at] = v;
    }
  }
}

@compute @workgroup_size(8, 8)
fn direct(@builtin(global_invocation_id) id: vec3<u32>) {
  let col = id.x * 4u;
  let row = id.y * 4u;
  if (col >= p.n || row >= p.m) { return; }
  var acc = array<vec4<f32>, 4>();
  for (var k = 0u; k < p.k; k++) {
    let b = vec4<f32>(w_at(col, k), w_at(col + 1u, k), w_at(col + 2u, k), w_at(col + 3u, k));
    acc[0] = fma(vec4<f32>(x_at(row, k)), b, acc[0]);
    acc[1] = fma(vec4<f32>(x_at(row + 1u, k)), b, acc[1]);
    acc[2] = fma(vec4<f32>(x_at(row + 2u, k)), b, acc[2]);
    acc[3] = fma(vec4<f32>(x_at(row + 3u, k)), b, acc[3]);
  }
  for (var i = 0u; i < 4u; i++) { finish(row + i, col, acc[i]); }
}

const TILE: u32 = 64u;
const DEPTH: u32 = 16u;
// One column of padding keeps neighbouring rows in different banks.
var<workgroup> xs: array<f32, 1056>;
var<workgroup> ws: array<f32, 1056>;

@compute @workgroup_size(16, 16)
fn tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let row0 = group.y * TILE;
  let col0 = group.x * TILE;
  var acc = array<vec4<f32>, 4>();
  for (var k0 = 0u; k0 < p.k; k0 += DEPTH) {
    for (var i = l; i < TILE * DEPTH; i += 256u) {
      // x is read along k, W along k (NT) or along n.
      let xr = i / DEPTH;
      let xk = i % DEPTH;
      let live = k0 + xk < p.k;
      xs[xk * 66u + xr] = select(0.0, x_at(row0 + xr, min(k0 + xk, p.k - 1u)), live);
      var wr = i / DEPTH;
      var wk = i % DEPTH;
      if (NT == 0u) { wr = i % TILE; wk = i / TILE; }
      let w_live = k0 + wk < p.k;
      ws[wk * 66u + wr] = select(0.0, w_at(col0 + wr, min(k0 + wk, p.k - 1u)), w_live);
    }
    workgroupBarrier();
    for (var k = 0u; k < DEPTH; k++) {
      let at = k * 66u + id.x * 4u;
      let b = vec4<f32>(ws[at], ws[at + 1u], ws[at + 2u], ws[at + 3u]);
      let row = k * 66u + id.y * 4u;
      acc[0] = fma(vec4<f32>(xs[row]), b, acc[0]);
      acc[1] = fma(vec4<f32>(xs[row + 1u]), b, acc[1]);
      acc[2] = fma(vec4<f32>(xs[row + 2u]), b, acc[2]);
      acc[3] = fma(vec4<f32>(xs[row + 3u]), b, acc[3]);
    }
    workgroupBarrier();
  }
  for (var i = 0u; i < 4u; i++) { finish(row0 + id.y * 4u + i, col0 + id.x * 4u, acc[i]); }
}
