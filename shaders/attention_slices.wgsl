// attention_slices.wgsl - attention of few queries over many keys: the keys of a query are cut into slices, which are merged
// Entries   : slices (unnormalised sums of a slice; its largest score and its total weight side by side), merge
// Shapes    : q, o [B, S, H, D]  k, v [B, room, KV, D], T rows count  valid [B, T]  sums [B, H, S, slices, D]
//             tops [B, H, S, slices, 2]  lse [B, H, S]
// Grid      : slices: one workgroup = 64 keys of one query of one head; merge: one workgroup = one query of one head; both
//             folded to 2-D
// Prelude   : fragments grid, softcap
// Mask      : the query at position P sees keys P - behind to P + ahead whose valid is not 0; its first slice begins at
//             key P - behind
// Precision : accumulates f32, in the same order whatever the grid; measured error vs f64 up to T = 500: 1e-6 of the largest
//             value
// Limits    : 3.3 KiB shared, 64 invocations, 6 bindings; no subgroups
// Cost      : 4*D flop a visible pair (memory bound: each key and value is read once for each query head)
// Source    : Dao et al. 2023, Flash-Decoding               CPU: src/ops/attention/
struct Params {
  b: u32, s: u32, t: u32, room: u32, h: u32, kv: u32, d: u32,
  behind: u32, ahead: u32, masked: u32, scale: f32, cap: f32,
}
@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read> valid: array<u32>;
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;
@group(0) @binding(5) var<storage, read_write> tops: array<vec2<f32>>;

@group(0) @binding(0) var<storage, read> sums_in: array<f32>;
@group(0) @binding(1) var<storage, read> tops_in: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> o: array<f32>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;

// Keys of a slice.
const SLICE: u32 = 64u;
// Invocations that share the product of the query and a key.
const PARTS: u32 = 8u;
// Stands for minus infinity: no real score comes near it, and differences of two stay finite.
const MASKED: f32 = -1e30;
var<workgroup> query: array<f32, 256>;
var<workgroup> partial: array<f32, 512>;
var<workgroup> weights: array<f32, 64>;

// Slices of a query's keys.
fn slices_of_query() -> u32 { return (min(p.t, p.behind + p.ahead + 1u) + SLICE - 1u) / SLICE; }

@compute @workgroup_size(64)
fn slices(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let group = linear_group(wid, g);
  let count = slices_of_query();
  let row = group / count;
  if (row >= p.b * p.h * p.s) { return; }
  let i = row % p.s;
  let h = row / p.s % p.h;
  let batch = row / p.s / p.h;
  let position = p.t - p.s + i;
  let end = min(position + p.ahead + 1u, p.t);
  let first = min(position - min(position, p.behind) + group % count * SLICE, end);
  let keys = min(SLICE, end - first);
  let at = ((batch * p.s + i) * p.h + h) * p.d;
  // Rows of consecutive keys are this far apart.
  let step = p.kv * p.d;
  let base = (batch * p.room + first) * step + h / (p.h / p.kv) * p.d;
  for (var c = l; c < p.d; c += 64u) { query[c] = q[at + c]; }
  workgroupBarrier();
  let part = l % PARTS;
  for (var j = l / PARTS; j < keys; j += 64u / PARTS) {
    var product = 0.0;
    for (var c = part; c < p.d; c += PARTS) { product = fma(query[c], k[base + j * step + c], product); }
    partial[j * PARTS + part] = product;
  }
  workgroupBarrier();
  var score = MASKED;
  if (l < keys && (p.masked == 0u || valid[batch * p.t + first + min(l, keys)] != 0u)) {
    var product = 0.0;
    for (var n = 0u; n < PARTS; n++) { product += partial[l * PARTS + n]; }
    score = product * p.scale;
    if (p.cap != 0.0) { score = softcap(score, p.cap); }
  }
  weights[l] = score;
  workgroupBarrier();
  var top = MASKED;
  for (var j = 0u; j < SLICE; j++) { top = max(top, weights[j]); }
  workgroupBarrier();
  weights[l] = select(exp(score - top), 0.0, score <= MASKED);
  workgroupBarrier();
  for (var c = l; c < p.d; c += 64u) {
    var sum = vec4<f32>(0.0);
    // Four keys at a time, the last one again beyond the end, where weights are 0.
    for (var j = 0u; j < keys; j += 4u) {
      let key = min(vec4<u32>(j, j + 1u, j + 2u, j + 3u), vec4<u32>(keys - 1u));
      let place = vec4<u32>(base + c) + key * step;
      let value = vec4<f32>(v[place.x], v[place.y], v[place.z], v[place.w]);
      sum = fma(vec4<f32>(weights[j], weights[j + 1u], weights[j + 2u], weights[j + 3u]), value, sum);
    }
    sums[group * p.d + c] = (sum.x + sum.y) + (sum.z + sum.w);
  }
  if (l == 0u) {
    var total = 0.0;
    for (var j = 0u; j < SLICE; j++) { total += weights[j]; }
    tops[group] = vec2<f32>(top, total);
  }
}

@compute @workgroup_size(64)
fn merge(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let row = linear_group(wid, g);
  if (row >= p.b * p.h * p.s) { return; }
  let count = slices_of_query();
  let first = row * count;
  var top = MASKED;
  for (var n = 0u; n < count; n++) { top = max(top, tops_in[first + n].x); }
  var total = 0.0;
  for (var n = 0u; n < count; n++) {
    let slice = tops_in[first + n];
    total = fma(slice.y, exp(slice.x - top), total);
  }
  // No visible key: zeros, and a logsumexp that nothing reads.
  let unseen = total == 0.0;
  let at = ((row / p.s / p.h * p.s + row % p.s) * p.h + row / p.s % p.h) * p.d;
  for (var c = l; c < p.d; c += 64u) {
    var sum = 0.0;
    for (var n = 0u; n < count; n++) {
      sum = fma(sums_in[(first + n) * p.d + c], exp(tops_in[first + n].x - top), sum);
    }
    o[at + c] = select(sum / total, 0.0, unseen);
  }
  if (l == 0u) { lse[row] = select(top + log(total), 0.0, unseen); }
}
