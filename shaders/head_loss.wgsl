// head_loss.wgsl - loss = sum over rows r with a target of log(sum_v exp(h[r] . w[v])) - h[r] . w[target[r]], and
//                  dh[r] = softmax(h[r] w^T) w - w[target[r]], over the vocabulary in chunks with an online softmax;
//                  with a cap, z = h w^T becomes cap tanh(z / cap)
// Entries   : compact, update, normalize, total; the products of a chunk are head_product.wgsl:
//             z = h w^T, and behind update dh = shrink dh + p w
// Shapes    : h, dh [R, D]  w [rows of a shard, D] packed  targets [R]  list [1 + R]: n, then the n rows with a target
//             z [n, CHUNK]  state [n]: max, sum, target's logit, shrink  loss [1]
// Grid      : compact, total: 1 workgroup; update, normalize: R workgroups folded to 2-D, one = one row of the list;
//             what lies beyond n ends at once
// Prelude   : WG = 256; load_w() of any format (w_words: words of a stored row)
// Precision : accumulates f32; measured error vs f64 at V = 4100: loss 5e-8, dh 2e-6 of the largest value
// Limits    : 2048 B shared, 256 invocations, 5 bindings; no subgroups
// Cost      : 4*n*V*D flop with dh, half without (compute bound); no [R, V] in memory
// Source    : online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867   CPU: src/ops/head_loss/mod.rs
struct Params {
  r: u32, d: u32, vocabulary: u32, w_words: u32,
  // This chunk: its first row in the vocabulary, its length, and the length of a line of z.
  first: u32, len: u32, line: u32,
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

@group(0) @binding(1) var<storage, read> w: array<u32>;
@group(0) @binding(2) var<storage, read> list: array<u32>;
@group(0) @binding(3) var<storage, read> state: array<vec4<f32>>;

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
fn normalize(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
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
