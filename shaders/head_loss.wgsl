// head_loss.wgsl - loss = sum over rows r with a target of log(sum_v exp(h[r] . w[v])) - h[r] . w[target[r]], and
//                  dh[r] = softmax(h[r] w^T) w - w[target[r]], over the vocabulary in chunks with an online softmax;
//                  with a cap, z = h w^T becomes cap tanh(z / cap)
// Entries   : compact, direct | tile (STEP 0: z = h w^T of a chunk; STEP 1: dh = shrink dh + p w), update, finish, total
// Shapes    : h, dh [R, D]  w [rows of a shard, D] packed  targets [R]  list [1 + R]: n, then the n rows with a target
//             z [n, CHUNK]  state [n]: max, sum, target's logit, shrink  loss [1]
// Grid      : compact, total: 1 workgroup; direct, tile: ceil(R/T) * ceil(columns/T), T = 32 | 64; update, finish: R
//             workgroups, one = one row of the list; all folded to 2-D; what lies beyond n ends at once
// Prelude   : WG = 256, STEP = 0 | 1; load_w() of any format (w_words: words of a stored row)
// Precision : accumulates f32; measured error vs f64 at V = 4100: loss 5e-8, dh 2e-6 of the largest value
// Limits    : 9344 B shared, 256 invocations, 5 bindings; no subgroups
// Cost      : 4*n*V*D flop with dh, half without (compute bound); no [R, V] in memory
// Source    : online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867   CPU: src/ops/head_loss/mod.rs
struct Params {
  r: u32, d: u32, vocabulary: u32, w_words: u32,
  // This chunk: its first row in the vocabulary and in its shard, its length, and the length of a line of z.
  first: u32, row0: u32, len: u32, line: u32,
  start: u32, nan: f32, cap: f32,
}
const NONE: u32 = 0xffffffffu;

@group(0) @binding(0) var<storage, read> targets: array<u32>;
@group(0) @binding(1) var<storage, read_write> list_out: array<u32>;

var<workgroup> counts: array<u32, WG>;

// Invocation l lists the rows of its own span, behind those of the spans before.
@compute @workgroup_size(WG)
fn compact(@builtin(local_invocation_index) l: u32) {
  let span = (p.r + WG - 1u) / WG;
  let begin = min(l * span, p.r);
  let end = min(begin + span, p.r);
  var count = 0u;
  for (var i = begin; i < end; i++) { count += select(1u, 0u, targets[i] == NONE); }
  counts[l] = count;
  workgroupBarrier();
  var to = 1u;
  for (var i = 0u; i < l; i++) { to += counts[i]; }
  for (var i = begin; i < end; i++) {
    if (targets[i] != NONE) {
      list_out[to] = i;
      to++;
    }
  }
  if (l == WG - 1u) { list_out[0] = to - 1u; }
}

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<u32>;
@group(0) @binding(2) var<storage, read> list: array<u32>;
@group(0) @binding(3) var<storage, read> state: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> c: array<f32>;

// The product of this step: its length, its columns, where row i of a starts, and element (q, j) of b.
fn depth() -> u32 { return select(p.d, p.len, STEP == 1u); }
fn width() -> u32 { return select(p.len, p.d, STEP == 1u); }
fn a_row(i: u32) -> u32 {
  if (STEP == 1u) { return i * p.line; }
  return list[1u + i] * p.d;
}
fn b_at(q: u32, j: u32) -> f32 {
  if (STEP == 1u) { return load_w(p.row0 + q, j); }
  return load_w(p.row0 + j, q);
}
// Stores four values of a row, `step` columns apart; what lies beyond the edge is dropped.
fn put(i: u32, j: u32, step: u32, v: vec4<f32>) {
  if (i >= list[0]) { return; }
  let n = width();
  let jj = j + step * vec4<u32>(0u, 1u, 2u, 3u);
  if (STEP == 1u) {
    let row = list[1u + i] * p.d;
    let shrink = state[i].w;
    if (jj.x < n) { c[row + jj.x] = fma(shrink, c[row + jj.x], v.x); }
    if (jj.y < n) { c[row + jj.y] = fma(shrink, c[row + jj.y], v.y); }
    if (jj.z < n) { c[row + jj.z] = fma(shrink, c[row + jj.z], v.z); }
    if (jj.w < n) { c[row + jj.w] = fma(shrink, c[row + jj.w], v.w); }
  } else {
    let row = i * p.line;
    if (jj.x < n) { c[row + jj.x] = v.x; }
    if (jj.y < n) { c[row + jj.y] = v.y; }
    if (jj.z < n) { c[row + jj.z] = v.z; }
    if (jj.w < n) { c[row + jj.w] = v.w; }
  }
}

@compute @workgroup_size(8, 8)
fn direct(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>) {
  let group = linear_group(wid, g);
  let columns = (width() + 31u) / 32u;
  let n = list[0];
  let i = group / columns * 32u + l.y * 4u;
  let j = group % columns * 32u + l.x * 4u;
  if (i >= n || j >= width()) { return; }
  // Rows and columns beyond the edge repeat the last one and are not stored.
  let ii = min(vec4<u32>(i, i + 1u, i + 2u, i + 3u), vec4<u32>(n - 1u));
  let jj = min(vec4<u32>(j, j + 1u, j + 2u, j + 3u), vec4<u32>(width() - 1u));
  let at = vec4<u32>(a_row(ii.x), a_row(ii.y), a_row(ii.z), a_row(ii.w));
  // Four variables, not an array: drivers keep these in registers.
  var acc0 = vec4<f32>(0.0);
  var acc1 = vec4<f32>(0.0);
  var acc2 = vec4<f32>(0.0);
  var acc3 = vec4<f32>(0.0);
  for (var q = 0u; q < depth(); q++) {
    let v = vec4<f32>(b_at(q, jj.x), b_at(q, jj.y), b_at(q, jj.z), b_at(q, jj.w));
    acc0 = fma(vec4<f32>(a[at.x + q]), v, acc0);
    acc1 = fma(vec4<f32>(a[at.y + q]), v, acc1);
    acc2 = fma(vec4<f32>(a[at.z + q]), v, acc2);
    acc3 = fma(vec4<f32>(a[at.w + q]), v, acc3);
  }
  put(i, j, 1u, acc0);
  put(i + 1u, j, 1u, acc1);
  put(i + 2u, j, 1u, acc2);
  put(i + 3u, j, 1u, acc3);
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
  let columns = (width() + T - 1u) / T;
  let n = list[0];
  let i = group / columns * T;
  let j = group % columns * T;
  // The same for the whole workgroup.
  if (i >= n) { return; }
  let lane = l.y * 16u + l.x;
  // Four variables, not an array: drivers keep these in registers.
  var acc0 = vec4<f32>(0.0);
  var acc1 = vec4<f32>(0.0);
  var acc2 = vec4<f32>(0.0);
  var acc3 = vec4<f32>(0.0);
  for (var k = 0u; k < depth(); k += BK) {
    workgroupBarrier();
    for (var s = lane; s < T * BK; s += 256u) {
      let ai = s / BK;
      let aq = s % BK;
      var av = 0.0;
      if (i + ai < n && k + aq < depth()) { av = a[a_row(i + ai) + k + aq]; }
      a_tile[aq * LINE + ai] = av;
      // Neighbouring lanes read along the rows of w.
      let bj = select(s / BK, s % T, STEP == 1u);
      let bq = select(s % BK, s / T, STEP == 1u);
      var bv = 0.0;
      if (j + bj < width() && k + bq < depth()) { bv = b_at(k + bq, j + bj); }
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
  put(i + l.y, j + l.x, 16u, acc0);
  put(i + l.y + 16u, j + l.x, 16u, acc1);
  put(i + l.y + 32u, j + l.x, 16u, acc2);
  put(i + l.y + 48u, j + l.x, 16u, acc3);
}

@group(0) @binding(1) var<storage, read> row_list: array<u32>;
@group(0) @binding(2) var<storage, read_write> z: array<f32>;
@group(0) @binding(3) var<storage, read_write> row_state: array<vec4<f32>>;

fn capped(logit: f32) -> f32 {
  if (p.cap == 0.0) { return logit; }
  return softcap(logit, p.cap);
}
// The derivative of a capped logit.
fn slope(logit: f32) -> f32 {
  if (p.cap == 0.0) { return 1.0; }
  let tanh = logit / p.cap;
  return 1.0 - tanh * tanh;
}

// Logits of a chunk become exp(z - max), times the slope of their cap, and the sums so far shrink to the new maximum.
@compute @workgroup_size(WG)
fn update(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(wid, g);
  if (i >= row_list[0]) { return; }
  var old = vec4<f32>(-1e30, 0.0, 0.0, 0.0);
  if (p.start == 0u) { old = row_state[i]; }
  let target_row = targets[row_list[1u + i]];
  var best = old.x;
  for (var k = l; k < p.len; k += WG) { best = max(best, capped(z[i * p.line + k])); }
  best = workgroup_max(best, l);
  var logit = old.z;
  if (target_row >= p.first && target_row < p.first + p.len) { logit = capped(z[i * p.line + target_row - p.first]); }
  // Everyone has read the target's logit before it is overwritten.
  storageBarrier();
  workgroupBarrier();
  var sum = 0.0;
  for (var k = l; k < p.len; k += WG) {
    let c = capped(z[i * p.line + k]);
    let e = exp(c - best);
    z[i * p.line + k] = e * slope(c);
    sum += e;
  }
  sum = workgroup_sum(sum, l);
  if (l == 0u) {
    let shrink = exp(old.x - best);
    row_state[i] = vec4<f32>(best, fma(old.y, shrink, sum), logit, shrink);
  }
}

@group(0) @binding(4) var<storage, read> targets4: array<u32>;
@group(0) @binding(0) var<storage, read_write> dh: array<f32>;

// Once for every shard: the first divides by the sum, the one with the target's row subtracts it.
@compute @workgroup_size(WG)
fn finish(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(wid, g);
  if (i >= list[0]) { return; }
  let row = list[1u + i];
  let target_row = targets4[row];
  let here = target_row >= p.first && target_row < p.first + p.len;
  let inverse = select(1.0, 1.0 / state[i].y, p.start == 1u);
  for (var k = l; k < p.d; k += WG) {
    var v = dh[row * p.d + k] * inverse;
    if (here) { v -= slope(state[i].z) * load_w(target_row - p.first, k); }
    dh[row * p.d + k] = v;
  }
}

@group(0) @binding(2) var<storage, read> state2: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;

@compute @workgroup_size(WG)
fn total(@builtin(local_invocation_index) l: u32) {
  var sum = 0.0;
  for (var i = l; i < row_list[0]; i += WG) {
    let s = state2[i];
    // A target outside of the vocabulary must not pass unseen.
    let bad = targets[row_list[1u + i]] >= p.vocabulary;
    sum += select(s.x + log(s.y) - s.z, p.nan, bad);
  }
  sum = workgroup_sum(sum, l);
  if (l == 0u) { loss[0] = sum; }
}
