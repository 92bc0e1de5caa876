// matmul.wgsl - c[g,m,n] = sum_k a[g,m,k] b[g,k,n];  TA: a is stored [G,K,M];  TB: b is stored [G,N,K]
// Entries   : direct (4x4 per invocation, no shared memory), tile (64x64 tiles through shared memory)
// Shapes    : a [G, M, K] | [G, K, M]  b [G, K, N] | [G, N, K]  c [G, M, N]        (row-major, contiguous)
// Grid      : G * ceil(M/T) * ceil(N/T) workgroups folded to 2-D, T = 32 (direct) | 64 (tile); one = one T x T tile of c
// Prelude   : TA, TB = 0 | 1
// Precision : accumulates f32 in the order of k; measured error vs f64 at K = 577: 1e-6 of the largest value
// Limits    : direct: none; tile: 8320 B shared, 256 invocations; 3 bindings; no subgroups
// Cost      : 2*G*M*N*K flop, 4*G*(M*K + K*N + M*N) bytes (compute bound)
// CPU       : src/ops/matmul.rs
struct Params { m: u32, n: u32, k: u32, groups: u32 }
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;

// Stores four values of a row, `step` columns apart; what lies beyond the edge is dropped.
fn put(batch: u32, i: u32, j: u32, step: u32, v: vec4<f32>) {
  if (i >= p.m) { return; }
  let row = (batch * p.m + i) * p.n;
  if (j < p.n) { c[row + j] = v.x; }
  if (j + step < p.n) { c[row + j + step] = v.y; }
  if (j + 2u * step < p.n) { c[row + j + 2u * step] = v.z; }
  if (j + 3u * step < p.n) { c[row + j + 3u * step] = v.w; }
}

@compute @workgroup_size(8, 8)
fn direct(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>) {
  let group = linear_group(wid, g);
  let columns = (p.n + 31u) / 32u;
  let tiles = (p.m + 31u) / 32u * columns;
  let batch = group / tiles;
  let i = group % tiles / columns * 32u + l.y * 4u;
  let j = group % columns * 32u + l.x * 4u;
  if (batch >= p.groups || i >= p.m || j >= p.n) { return; }
  // Rows and columns beyond the edge repeat the last one and are not stored.
  let ii = min(vec4<u32>(i, i + 1u, i + 2u, i + 3u), vec4<u32>(p.m - 1u));
  let jj = min(vec4<u32>(j, j + 1u, j + 2u, j + 3u), vec4<u32>(p.n - 1u));
  var at = ii * select(p.k, 1u, TA == 1u) + batch * p.m * p.k;
  var bt = jj * select(1u, p.k, TB == 1u) + batch * p.k * p.n;
  let a_step = select(1u, p.m, TA == 1u);
  let b_step = select(p.n, 1u, TB == 1u);
  // Four variables, not an array: drivers keep these in registers.
  var acc0 = vec4<f32>(0.0);
  var acc1 = vec4<f32>(0.0);
  var acc2 = vec4<f32>(0.0);
  var acc3 = vec4<f32>(0.0);
  for (var q = 0u; q < p.k; q++) {
    let v = vec4<f32>(b[bt.x], b[bt.y], b[bt.z], b[bt.w]);
    acc0 = fma(vec4<f32>(a[at.x]), v, acc0);
    acc1 = fma(vec4<f32>(a[at.y]), v, acc1);
    acc2 = fma(vec4<f32>(a[at.z]), v, acc2);
    acc3 = fma(vec4<f32>(a[at.w]), v, acc3);
    at += a_step;
    bt += b_step;
  }
  put(batch, i, j, 1u, acc0);
  put(batch, i + 1u, j, 1u, acc1);
  put(batch, i + 2u, j, 1u, acc2);
  put(batch, i + 3u, j, 1u, acc3);
}

const BK: u32 = 16u;
const T: u32 = 64u;
// One more column than values: rows start in different banks.
const LINE: u32 = 65u;
var<workgroup> a_tile: array<f32, 1040>;
var<workgroup> b_tile: array<f32, 1040>;

// The invocation at (x, y) holds rows y + 16 r and columns x + 16 s of the tile.
@compute @workgroup_size(16, 16)
fn tile(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>) {
  let group = linear_group(wid, g);
  let columns = (p.n + T - 1u) / T;
  let tiles = (p.m + T - 1u) / T * columns;
  let batch = group / tiles;
  if (batch >= p.groups) { return; }
  let i = group % tiles / columns * T;
  let j = group % columns * T;
  let lane = l.y * 16u + l.x;
  // Four variables, not an array: drivers keep these in registers.
  var acc0 = vec4<f32>(0.0);
  var acc1 = vec4<f32>(0.0);
  var acc2 = vec4<f32>(0.0);
  var acc3 = vec4<f32>(0.0);
  for (var k = 0u; k < p.k; k += BK) {
    workgroupBarrier();
    for (var s = lane; s < T * BK; s += 256u) {
      // Neighbouring lanes read along the contiguous axis.
      let ai = select(s / BK, s % T, TA == 1u);
      let aq = select(s % BK, s / T, TA == 1u);
      var av = 0.0;
      if (i + ai < p.m && k + aq < p.k) {
        av = a[batch * p.m * p.k + select((i + ai) * p.k + k + aq, (k + aq) * p.m + i + ai, TA == 1u)];
      }
      a_tile[aq * LINE + ai] = av;
      let bj = select(s % T, s / BK, TB == 1u);
      let bq = select(s / T, s % BK, TB == 1u);
      var bv = 0.0;
      if (j + bj < p.n && k + bq < p.k) {
        bv = b[batch * p.k * p.n + select((k + bq) * p.n + j + bj, (j + bj) * p.k + k + bq, TB == 1u)];
      }
      b_tile[bq * LINE + bj] = bv;
    }
    workgroupBarrier();
    for (var q = 0u; q < BK; q++) {
      let at = q * LINE + l.y;
      let bt = q * LINE + l.x;
      let v = vec4<f32>(b_tile[bt], b_tile[bt + 16u], b_tile[bt + 32u], b_tile[bt + 48u]);
      acc0 = fma(vec4<f32>(a_tile[at]), v, acc0);
      acc1 = fma(vec4<f32>(a_tile[at + 16u]), v, acc1);
      acc2 = fma(vec4<f32>(a_tile[at + 32u]), v, acc2);
      acc3 = fma(vec4<f32>(a_tile[at + 48u]), v, acc3);
    }
  }
  put(batch, i + l.y, j + l.x, 16u, acc0);
  put(batch, i + l.y + 16u, j + l.x, 16u, acc1);
  put(batch, i + l.y + 32u, j + l.x, 16u, acc2);
  put(batch, i + l.y + 48u, j + l.x, 16u, acc3);
}
