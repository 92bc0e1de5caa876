// matmul.wgsl - c[g,m,n] = sum_k a[g,m,k] b[g,k,n];  TA: a is stored [G,K,M];  TB: b is stored [G,N,K]
// Entries   : direct, tile, vector (common/product.wgsl), stream (common/product_stream.wgsl),
//             ahead (common/product_ahead.wgsl)
// Shapes    : a [G, M, K] | [G, K, M]  b [G, K, N] | [G, N, K]  c [G, M, N]        (row-major, contiguous)
// Grid      : G * ceil(M / rows) * ceil(N / columns) workgroups folded to 2-D; one = one tile of c
// Prelude   : R, V, X, Y, LANES (src/engine/product.rs); TA, TB, EDGE = 0 | 1;  fragments product, read4, load4_f32, grid
// Precision : accumulates f32 in the order of k (vector: in 16 slices, stream: in 32);
//             measured error vs f64 at K = 577: 1e-6 of the largest value
// Limits    : direct: none; tile, ahead: 8704 B shared; vector, stream: 8192 B shared; 64 invocations; 3 bindings; no subgroups
// Cost      : 2*G*M*N*K flop, 4*G*(M*K + K*N + M*N) bytes (compute bound)
// CPU       : src/ops/matmul.rs
struct Params { m: u32, n: u32, k: u32, groups: u32, a_stride: u32, a_first: u32, w_first: u32, w_words: u32 }
@group(0) @binding(1) var<storage, read> w: array<u32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;

fn rows_end() -> u32 { return p.m; }
fn a_start(batch: u32, row: u32) -> u32 { return batch * p.m * p.k + p.a_first + min(row, p.m - 1u) * p.a_stride; }

fn finish(batch: u32, row: u32, col: u32, values: mat4x4<f32>) {
  var v = values;
  for (var i = 0u; i < min(BLOCK, p.m - min(row, p.m)); i++) {
    let at = (batch * p.m + row + i) * p.n + col;
    for (var j = 0u; j < min(4u, p.n - min(col, p.n)); j++) { c[at + j] = v[i][j]; }
  }
}
