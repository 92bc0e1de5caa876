// attention.wgsl - o = softmax(scale q k^T) v, causal, grouped heads; query i sits at position T - S + i
// Entries   : forward, stats (lse and rowsum(dy * o) side by side), backward_q, backward_kv
// Shapes    : q, o, dy, dq [B, S, H, D]  k, v, dk, dv [B, room, KV, D], T rows count  valid [B, T]  lse [B, H, S]  stats [B, H, S, 2]
// Grid      : forward, backward_q: B * H * ceil(S/32) workgroups, one = 32 queries of one head; backward_kv:
//             B * KV * ceil(T/32), one = 32 keys of one head, all query heads of its group in order;
//             stats: one invocation = one row; all folded to 2-D
// Prelude   : NJ = 1 | 2 | 4: a row has at most 64 * NJ values
// Precision : accumulates f32; measured error vs f64 up to T = 300, D = 256: 1e-6 of the largest value
// Memory    : scores and weights live in 32 x 32 tiles; nothing of size S x T is stored
// Limits    : 13.7 KiB shared, 128 invocations, 8 bindings; no subgroups
// Cost      : forward 2*B*H*S*T*D flop (causal half of 4), backward 2.5 to 3.5 times that (compute bound)
// Source    : Dao 2023, arXiv:2307.08691                     CPU: src/ops/attention/
struct Params { b: u32, s: u32, t: u32, room: u32, h: u32, kv: u32, d: u32, masked: u32, scale: f32 }
@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read> valid: array<u32>;
@group(0) @binding(4) var<storage, read_write> o: array<f32>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

@group(0) @binding(4) var<storage, read> dy: array<f32>;
@group(0) @binding(5) var<storage, read> stats_in: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> dq: array<f32>;
@group(0) @binding(6) var<storage, read_write> dk: array<f32>;
@group(0) @binding(7) var<storage, read_write> dv: array<f32>;

@group(0) @binding(0) var<storage, read> row_o: array<f32>;
@group(0) @binding(1) var<storage, read> row_dy: array<f32>;
@group(0) @binding(2) var<storage, read> row_lse: array<f32>;
@group(0) @binding(3) var<storage, read_write> stats_out: array<vec2<f32>>;

// Rows and columns of a score tile; the invocation at (x, y) holds rows 4 y .. 4 y + 3, columns x and x + 16.
const T: u32 = 32u;
// Columns of q and k that are staged at once. One more per line: rows start in different banks.
const DC: u32 = 8u;
const LINE: u32 = 9u;
const TLINE: u32 = 33u;
// Stands for minus infinity: no real score comes near it, and differences of two stay finite.
const MASKED: f32 = -1e30;
var<workgroup> x0: array<f32, 288>;
var<workgroup> x1: array<f32, 288>;
var<workgroup> x2: array<f32, 288>;
var<workgroup> x3: array<f32, 288>;
var<workgroup> prob: array<f32, 1056>;
var<workgroup> grad: array<f32, 1056>;
var<workgroup> partial: array<f32, 128>;
var<workgroup> row_scale: array<f32, 32>;

fn query_row(batch: u32, i: u32, h: u32) -> u32 { return ((batch * p.s + i) * p.h + h) * p.d; }
fn key_row(batch: u32, j: u32, kvh: u32) -> u32 { return ((batch * p.room + j) * p.kv + kvh) * p.d; }

fn visible(batch: u32, i: u32, j: u32) -> bool {
  if (i >= p.s || j > p.t - p.s + i) { return false; }
  if (p.masked == 0u) { return true; }
  return valid[batch * p.t + j] != 0u;
}

// The columns that an invocation owns in block n of a row; those beyond the row repeat the last and are not stored.
fn columns(x: u32, n: u32) -> vec4<u32> {
  let c = 64u * n + x;
  return min(vec4<u32>(c, c + 16u, c + 32u, c + 48u), vec4<u32>(p.d - 1u));
}

@compute @workgroup_size(16, 8)
fn forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>) {
  let group = linear_group(wid, g);
  let blocks = (p.s + T - 1u) / T;
  let batch = group / blocks / p.h;
  if (batch >= p.b) { return; }
  let h = group / blocks % p.h;
  let kvh = h / (p.h / p.kv);
  let i0 = group % blocks * T;
  let lane = l.y * 16u + l.x;
  // In the softmax four invocations share a row.
  let row = lane / 4u;
  let part = lane % 4u;
  let end = min(p.t - p.s + i0 + T, p.t);
  // One array per row: after unrolling over NJ every index is a constant, which keeps them in registers.
  var acc0: array<vec4<f32>, NJ>;
  var acc1: array<vec4<f32>, NJ>;
  var acc2: array<vec4<f32>, NJ>;
  var acc3: array<vec4<f32>, NJ>;
  var top = MASKED;
  var total = 0.0;
  for (var j0 = 0u; j0 < end; j0 += T) {
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    for (var c0 = 0u; c0 < p.d; c0 += DC) {
      workgroupBarrier();
      for (var e = lane; e < T * DC; e += 128u) {
        let r = e / DC;
        let c = c0 + e % DC;
        var qv = 0.0;
        var kv = 0.0;
        if (c < p.d && i0 + r < p.s) { qv = q[query_row(batch, i0 + r, h) + c]; }
        if (c < p.d && j0 + r < p.t) { kv = k[key_row(batch, j0 + r, kvh) + c]; }
        x0[r * LINE + e % DC] = qv;
        x1[r * LINE + e % DC] = kv;
      }
      workgroupBarrier();
      for (var c = 0u; c < DC; c++) {
        let a = 4u * l.y * LINE + c;
        let u = vec4<f32>(x0[a], x0[a + LINE], x0[a + 2u * LINE], x0[a + 3u * LINE]);
        s0 = fma(u, vec4<f32>(x1[l.x * LINE + c]), s0);
        s1 = fma(u, vec4<f32>(x1[(l.x + 16u) * LINE + c]), s1);
      }
    }
    for (var r = 0u; r < 4u; r++) {
      let i = 4u * l.y + r;
      prob[i * TLINE + l.x] = select(MASKED, s0[r] * p.scale, visible(batch, i0 + i, j0 + l.x));
      prob[i * TLINE + l.x + 16u] = select(MASKED, s1[r] * p.scale, visible(batch, i0 + i, j0 + l.x + 16u));
    }
    workgroupBarrier();
    var best = top;
    for (var n = part; n < T; n += 4u) { best = max(best, prob[row * TLINE + n]); }
    partial[lane] = best;
    workgroupBarrier();
    let a = 4u * row;
    best = max(max(partial[a], partial[a + 1u]), max(partial[a + 2u], partial[a + 3u]));
    var sum = 0.0;
    for (var n = part; n < T; n += 4u) {
      let s = prob[row * TLINE + n];
      let w = select(exp(s - best), 0.0, s <= MASKED);
      prob[row * TLINE + n] = w;
      sum += w;
    }
    let shrink = exp(top - best);
    total = fma(total, shrink, sum);
    top = best;
    if (part == 0u) { row_scale[row] = shrink; }
    workgroupBarrier();
    for (var n = 0u; n < NJ; n++) {
      acc0[n] *= row_scale[4u * l.y + 0u];
      acc1[n] *= row_scale[4u * l.y + 1u];
      acc2[n] *= row_scale[4u * l.y + 2u];
      acc3[n] *= row_scale[4u * l.y + 3u];
    }
    for (var j = 0u; j < min(T, end - j0); j++) {
      let vt = key_row(batch, j0 + j, kvh);
      let w = 4u * l.y * TLINE + j;
      let a = vec4<f32>(prob[w], prob[w + TLINE], prob[w + 2u * TLINE], prob[w + 3u * TLINE]);
      for (var n = 0u; n < NJ; n++) {
        let c = vt + columns(l.x, n);
        let value = vec4<f32>(v[c.x], v[c.y], v[c.z], v[c.w]);
        acc0[n] = fma(vec4<f32>(a.x), value, acc0[n]);
        acc1[n] = fma(vec4<f32>(a.y), value, acc1[n]);
        acc2[n] = fma(vec4<f32>(a.z), value, acc2[n]);
        acc3[n] = fma(vec4<f32>(a.w), value, acc3[n]);
      }
    }
  }
  partial[lane] = total;
  workgroupBarrier();
  if (part == 0u) {
    let sum = (partial[lane] + partial[lane + 1u]) + (partial[lane + 2u] + partial[lane + 3u]);
    // No visible key: zeros, and a logsumexp that nothing reads.
    row_scale[row] = select(1.0 / sum, 0.0, sum == 0.0);
    if (i0 + row < p.s) { lse[(batch * p.h + h) * p.s + i0 + row] = select(top + log(sum), 0.0, sum == 0.0); }
  }
  workgroupBarrier();
  // Indexed by variables from here on: a rolled loop of stores compiles 2 to 3 times faster on lavapipe.
  var out_acc: array<vec4<f32>, 4u * NJ>;
  for (var n = 0u; n < NJ; n++) {
    out_acc[0u * NJ + n] = acc0[n];
    out_acc[1u * NJ + n] = acc1[n];
    out_acc[2u * NJ + n] = acc2[n];
    out_acc[3u * NJ + n] = acc3[n];
  }
  for (var r = 0u; r < min(4u, p.s - min(p.s, i0 + 4u * l.y)); r++) {
    let i = i0 + 4u * l.y + r;
    for (var m = 0u; 16u * m + l.x < p.d; m++) {
      let at = query_row(batch, i, h) + 16u * m + l.x;
      o[at] = out_acc[r * NJ + m / 4u][m % 4u] * row_scale[4u * l.y + r];
    }
  }
}

@compute @workgroup_size(64)
fn stats(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let row = linear_group(wid, g) * 64u + l;
  if (row >= p.b * p.h * p.s) { return; }
  let at = query_row(row / p.s / p.h, row % p.s, row / p.s % p.h);
  var sum = 0.0;
  for (var c = 0u; c < p.d; c++) { sum = fma(row_o[at + c], row_dy[at + c], sum); }
  stats_out[row] = vec2<f32>(row_lse[row], sum);
}

// Stages DC columns of 32 queries (x0: q, x2: dy) and 32 keys (x1: k, x3: v).
fn stage(batch: u32, h: u32, kvh: u32, i0: u32, j0: u32, c0: u32, lane: u32) {
  for (var e = lane; e < T * DC; e += 128u) {
    let r = e / DC;
    let c = c0 + e % DC;
    var u = vec4<f32>(0.0);
    if (c < p.d && i0 + r < p.s) {
      let at = query_row(batch, i0 + r, h) + c;
      u.x = q[at];
      u.z = dy[at];
    }
    if (c < p.d && j0 + r < p.t) {
      let at = key_row(batch, j0 + r, kvh) + c;
      u.y = k[at];
      u.w = v[at];
    }
    let to = r * LINE + e % DC;
    x0[to] = u.x;
    x1[to] = u.y;
    x2[to] = u.z;
    x3[to] = u.w;
  }
}

// Weight of key j for query i and the derivative of its score, from q.k and dy.v.
fn weight(batch: u32, h: u32, i: u32, j: u32, s: f32, dp: f32) -> vec2<f32> {
  if (!visible(batch, i, j)) { return vec2<f32>(0.0); }
  let st = stats_in[(batch * p.h + h) * p.s + i];
  let w = exp(s * p.scale - st.x);
  return vec2<f32>(w, w * (dp - st.y) * p.scale);
}

@compute @workgroup_size(16, 8)
fn backward_q(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>) {
  let group = linear_group(wid, g);
  let blocks = (p.s + T - 1u) / T;
  let batch = group / blocks / p.h;
  if (batch >= p.b) { return; }
  let h = group / blocks % p.h;
  let kvh = h / (p.h / p.kv);
  let i0 = group % blocks * T;
  let lane = l.y * 16u + l.x;
  let end = min(p.t - p.s + i0 + T, p.t);
  // One array per row: after unrolling over NJ every index is a constant, which keeps them in registers.
  var acc0: array<vec4<f32>, NJ>;
  var acc1: array<vec4<f32>, NJ>;
  var acc2: array<vec4<f32>, NJ>;
  var acc3: array<vec4<f32>, NJ>;
  for (var j0 = 0u; j0 < end; j0 += T) {
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var d0 = vec4<f32>(0.0);
    var d1 = vec4<f32>(0.0);
    for (var c0 = 0u; c0 < p.d; c0 += DC) {
      workgroupBarrier();
      stage(batch, h, kvh, i0, j0, c0, lane);
      workgroupBarrier();
      for (var c = 0u; c < DC; c++) {
        let a = 4u * l.y * LINE + c;
        let b = l.x * LINE + c;
        let u = vec4<f32>(x0[a], x0[a + LINE], x0[a + 2u * LINE], x0[a + 3u * LINE]);
        let w = vec4<f32>(x2[a], x2[a + LINE], x2[a + 2u * LINE], x2[a + 3u * LINE]);
        s0 = fma(u, vec4<f32>(x1[b]), s0);
        s1 = fma(u, vec4<f32>(x1[b + 16u * LINE]), s1);
        d0 = fma(w, vec4<f32>(x3[b]), d0);
        d1 = fma(w, vec4<f32>(x3[b + 16u * LINE]), d1);
      }
    }
    for (var r = 0u; r < 4u; r++) {
      let i = 4u * l.y + r;
      grad[i * TLINE + l.x] = weight(batch, h, i0 + i, j0 + l.x, s0[r], d0[r]).y;
      grad[i * TLINE + l.x + 16u] = weight(batch, h, i0 + i, j0 + l.x + 16u, s1[r], d1[r]).y;
    }
    workgroupBarrier();
    for (var j = 0u; j < min(T, end - j0); j++) {
      let kt = key_row(batch, j0 + j, kvh);
      let w = 4u * l.y * TLINE + j;
      let a = vec4<f32>(grad[w], grad[w + TLINE], grad[w + 2u * TLINE], grad[w + 3u * TLINE]);
      for (var n = 0u; n < NJ; n++) {
        let c = kt + columns(l.x, n);
        let value = vec4<f32>(k[c.x], k[c.y], k[c.z], k[c.w]);
        acc0[n] = fma(vec4<f32>(a.x), value, acc0[n]);
        acc1[n] = fma(vec4<f32>(a.y), value, acc1[n]);
        acc2[n] = fma(vec4<f32>(a.z), value, acc2[n]);
        acc3[n] = fma(vec4<f32>(a.w), value, acc3[n]);
      }
    }
  }
  var out_acc: array<vec4<f32>, 4u * NJ>;
  for (var n = 0u; n < NJ; n++) {
    out_acc[0u * NJ + n] = acc0[n];
    out_acc[1u * NJ + n] = acc1[n];
    out_acc[2u * NJ + n] = acc2[n];
    out_acc[3u * NJ + n] = acc3[n];
  }
  for (var r = 0u; r < min(4u, p.s - min(p.s, i0 + 4u * l.y)); r++) {
    let i = i0 + 4u * l.y + r;
    for (var m = 0u; 16u * m + l.x < p.d; m++) {
      let at = query_row(batch, i, h) + 16u * m + l.x;
      dq[at] = out_acc[r * NJ + m / 4u][m % 4u];
    }
  }
}

// Like backward_q with the tile turned: rows are keys, columns are queries.
@compute @workgroup_size(16, 8)
fn backward_kv(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>) {
  let group = linear_group(wid, g);
  let blocks = (p.t + T - 1u) / T;
  let batch = group / blocks / p.kv;
  if (batch >= p.b) { return; }
  let kvh = group / blocks % p.kv;
  let j0 = group % blocks * T;
  let lane = l.y * 16u + l.x;
  let heads = p.h / p.kv;
  let offset = p.t - p.s;
  let first = (max(j0, offset) - offset) / T * T;
  var k0: array<vec4<f32>, NJ>;
  var k1: array<vec4<f32>, NJ>;
  var k2: array<vec4<f32>, NJ>;
  var k3: array<vec4<f32>, NJ>;
  var v0: array<vec4<f32>, NJ>;
  var v1: array<vec4<f32>, NJ>;
  var v2: array<vec4<f32>, NJ>;
  var v3: array<vec4<f32>, NJ>;
  for (var h = kvh * heads; h < (kvh + 1u) * heads; h++) {
    for (var i0 = first; i0 < p.s; i0 += T) {
      var s0 = vec4<f32>(0.0);
      var s1 = vec4<f32>(0.0);
      var d0 = vec4<f32>(0.0);
      var d1 = vec4<f32>(0.0);
      for (var c0 = 0u; c0 < p.d; c0 += DC) {
        workgroupBarrier();
        stage(batch, h, kvh, i0, j0, c0, lane);
        workgroupBarrier();
        for (var c = 0u; c < DC; c++) {
          let a = 4u * l.y * LINE + c;
          let b = l.x * LINE + c;
          let u = vec4<f32>(x1[a], x1[a + LINE], x1[a + 2u * LINE], x1[a + 3u * LINE]);
          let w = vec4<f32>(x3[a], x3[a + LINE], x3[a + 2u * LINE], x3[a + 3u * LINE]);
          s0 = fma(u, vec4<f32>(x0[b]), s0);
          s1 = fma(u, vec4<f32>(x0[b + 16u * LINE]), s1);
          d0 = fma(w, vec4<f32>(x2[b]), d0);
          d1 = fma(w, vec4<f32>(x2[b + 16u * LINE]), d1);
        }
      }
      for (var r = 0u; r < 4u; r++) {
        let j = 4u * l.y + r;
        let near = weight(batch, h, i0 + l.x, j0 + j, s0[r], d0[r]);
        let far = weight(batch, h, i0 + l.x + 16u, j0 + j, s1[r], d1[r]);
        prob[j * TLINE + l.x] = near.x;
        grad[j * TLINE + l.x] = near.y;
        prob[j * TLINE + l.x + 16u] = far.x;
        grad[j * TLINE + l.x + 16u] = far.y;
      }
      workgroupBarrier();
      for (var i = 0u; i < min(T, p.s - i0); i++) {
        let qt = query_row(batch, i0 + i, h);
        let w = 4u * l.y * TLINE + i;
        let a = vec4<f32>(grad[w], grad[w + TLINE], grad[w + 2u * TLINE], grad[w + 3u * TLINE]);
        let b = vec4<f32>(prob[w], prob[w + TLINE], prob[w + 2u * TLINE], prob[w + 3u * TLINE]);
        for (var n = 0u; n < NJ; n++) {
          let c = qt + columns(l.x, n);
          let qv = vec4<f32>(q[c.x], q[c.y], q[c.z], q[c.w]);
          let dyv = vec4<f32>(dy[c.x], dy[c.y], dy[c.z], dy[c.w]);
          k0[n] = fma(vec4<f32>(a.x), qv, k0[n]);
          v0[n] = fma(vec4<f32>(b.x), dyv, v0[n]);
          k1[n] = fma(vec4<f32>(a.y), qv, k1[n]);
          v1[n] = fma(vec4<f32>(b.y), dyv, v1[n]);
          k2[n] = fma(vec4<f32>(a.z), qv, k2[n]);
          v2[n] = fma(vec4<f32>(b.z), dyv, v2[n]);
          k3[n] = fma(vec4<f32>(a.w), qv, k3[n]);
          v3[n] = fma(vec4<f32>(b.w), dyv, v3[n]);
        }
      }
    }
  }
  var out_k: array<vec4<f32>, 4u * NJ>;
  var out_v: array<vec4<f32>, 4u * NJ>;
  for (var n = 0u; n < NJ; n++) {
    out_k[0u * NJ + n] = k0[n];
    out_k[1u * NJ + n] = k1[n];
    out_k[2u * NJ + n] = k2[n];
    out_k[3u * NJ + n] = k3[n];
    out_v[0u * NJ + n] = v0[n];
    out_v[1u * NJ + n] = v1[n];
    out_v[2u * NJ + n] = v2[n];
    out_v[3u * NJ + n] = v3[n];
  }
  for (var r = 0u; r < min(4u, p.t - min(p.t, j0 + 4u * l.y)); r++) {
    let j = j0 + 4u * l.y + r;
    for (var m = 0u; 16u * m + l.x < p.d; m++) {
      let at = key_row(batch, j, kvh) + 16u * m + l.x;
      dk[at] = out_k[r * NJ + m / 4u][m % 4u];
      dv[at] = out_v[r * NJ + m / 4u][m % 4u];
    }
  }
}
