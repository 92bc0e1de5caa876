// attention.wgsl - o = softmax(cap(scale q k^T) + mask) v, grouped heads; query i sits at position T - S + i
// Entries   : forward, stats (lse and rowsum(dy * o) side by side), backward_q, backward_kv
// Shapes    : q, o, dy, dq [B, S, H, D]  k, v, dk, dv [B, room, KV, D], T rows count  valid [B, T]  lse [B, H, S]  stats [B, H, S, 2]
// Grid      : forward, backward_q: B * H * ceil(S/32) workgroups, one = 32 queries of one head; backward_kv:
//             B * KV * ceil(T/32), one = 32 keys of one head, all query heads of its group in order;
//             stats: one invocation = one row; all folded to 2-D
// Prelude   : NJ = 1 | 2 | 4: a row has at most 64 * NJ values
// Mask      : the query at position P sees keys P - behind to P + ahead (causal: ahead = 0) whose valid is not 0; tiles of
//             keys that none of a tile's queries see are not visited
// Precision : accumulates f32; measured error vs f64 up to T = 700, D = 256: 1e-6 of the largest value
// Memory    : scores and weights live in 32 x 32 tiles; nothing of size S x T is stored
// Limits    : 13.7 KiB shared, 128 invocations, 8 bindings; no subgroups
// Cost      : forward 4*D flop a visible pair, backward 2.5 to 3.5 times that (compute bound)
// Source    : Dao 2023, arXiv:2307.08691                     CPU: src/ops/attention/
struct Params {
  b: u32, s: u32, t: u32, room: u32, h: u32, kv: u32, d: u32,
  behind: u32, ahead: u32, masked: u32, scale: f32, cap: f32,
}
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
// DC columns of what lies along the rows and the columns of a tile: q and k, and in backward passes dy and v.
var<workgroup> row_side: array<f32, 288>;
var<workgroup> column_side: array<f32, 288>;
var<workgroup> row_side2: array<f32, 288>;
var<workgroup> column_side2: array<f32, 288>;
// A tile of weights, and of derivatives of the scores.
var<workgroup> prob: array<f32, 1056>;
var<workgroup> grad: array<f32, 1056>;
var<workgroup> partial: array<f32, 128>;
var<workgroup> row_scale: array<f32, 32>;

fn query_row(batch: u32, i: u32, h: u32) -> u32 { return ((batch * p.s + i) * p.h + h) * p.d; }
fn key_row(batch: u32, j: u32, kvh: u32) -> u32 { return ((batch * p.room + j) * p.kv + kvh) * p.d; }

// The keys, rounded out to tiles, that the queries of the tile from i0 on may see.
fn first_key(i0: u32) -> u32 {
  let position = p.t - p.s + i0;
  return (position - min(position, p.behind)) / T * T;
}
fn end_of_keys(i0: u32) -> u32 { return min(p.t - p.s + i0 + T + p.ahead, p.t); }
// The queries, rounded out to tiles, that may see the keys of the tile from j0 on.
fn first_query(j0: u32) -> u32 {
  let unseen = p.t - p.s + p.ahead;
  return (max(j0, unseen) - unseen) / T * T;
}
fn end_of_queries(j0: u32) -> u32 {
  let offset = p.t - p.s;
  return min(max(j0 + T + p.behind, offset) - offset, p.s);
}

fn visible(batch: u32, i: u32, j: u32) -> bool {
  let position = p.t - p.s + i;
  if (i >= p.s || j >= p.t || j > position + p.ahead || j + p.behind < position) { return false; }
  if (p.masked == 0u) { return true; }
  return valid[batch * p.t + j] != 0u;
}

// A score from the product of a query and a key.
fn score(product: f32) -> f32 {
  let s = product * p.scale;
  if (p.cap == 0.0) { return s; }
  return softcap(s, p.cap);
}

// The weight of key j for query i and the derivative of the loss by q.k, from q.k and dy.v.
fn weight(batch: u32, h: u32, i: u32, j: u32, product: f32, dp: f32) -> vec2<f32> {
  if (!visible(batch, i, j)) { return vec2<f32>(0.0); }
  let s = score(product);
  let stats = stats_in[(batch * p.h + h) * p.s + i];
  let w = exp(s - stats.x);
  let ds = w * (dp - stats.y);
  if (p.cap == 0.0) { return vec2<f32>(w, ds * p.scale); }
  let tanh = s / p.cap;
  return vec2<f32>(w, ds * (1.0 - tanh * tanh) * p.scale);
}

// The columns that an invocation owns in block n of a row; those beyond the row repeat the last and are not stored.
fn columns(x: u32, n: u32) -> vec4<u32> {
  let c = 64u * n + x;
  return min(vec4<u32>(c, c + 16u, c + 32u, c + 48u), vec4<u32>(p.d - 1u));
}

// Four rows of a staged operand, or of a tile, in one column.
fn four_staged(line: u32, c: u32) -> vec4<f32> {
  let at = 4u * line * LINE + c;
  return vec4<f32>(row_side[at], row_side[at + LINE], row_side[at + 2u * LINE], row_side[at + 3u * LINE]);
}
fn four_staged2(line: u32, c: u32) -> vec4<f32> {
  let at = 4u * line * LINE + c;
  return vec4<f32>(row_side2[at], row_side2[at + LINE], row_side2[at + 2u * LINE], row_side2[at + 3u * LINE]);
}
fn four_probs(line: u32, c: u32) -> vec4<f32> {
  let at = 4u * line * TLINE + c;
  return vec4<f32>(prob[at], prob[at + TLINE], prob[at + 2u * TLINE], prob[at + 3u * TLINE]);
}
fn four_grads(line: u32, c: u32) -> vec4<f32> {
  let at = 4u * line * TLINE + c;
  return vec4<f32>(grad[at], grad[at + TLINE], grad[at + 2u * TLINE], grad[at + 3u * TLINE]);
}

// Products of an invocation's four rows with its columns x (near) and x + 16 (far) of a tile.
struct Products { near: vec4<f32>, far: vec4<f32> }

// q k^T of a tile: rows are queries, columns are keys.
fn scores_of(batch: u32, h: u32, kvh: u32, i0: u32, j0: u32, l: vec3<u32>) -> Products {
  var qk = Products(vec4<f32>(0.0), vec4<f32>(0.0));
  for (var c0 = 0u; c0 < p.d; c0 += DC) {
    workgroupBarrier();
    for (var e = l.y * 16u + l.x; e < T * DC; e += 128u) {
      let r = e / DC;
      let c = c0 + e % DC;
      var query = 0.0;
      var key = 0.0;
      if (c < p.d && i0 + r < p.s) { query = q[query_row(batch, i0 + r, h) + c]; }
      if (c < p.d && j0 + r < p.t) { key = k[key_row(batch, j0 + r, kvh) + c]; }
      row_side[r * LINE + e % DC] = query;
      column_side[r * LINE + e % DC] = key;
    }
    workgroupBarrier();
    for (var c = 0u; c < DC; c++) {
      let rows = four_staged(l.y, c);
      qk.near = fma(rows, vec4<f32>(column_side[l.x * LINE + c]), qk.near);
      qk.far = fma(rows, vec4<f32>(column_side[(l.x + 16u) * LINE + c]), qk.far);
    }
  }
  return qk;
}

struct BothProducts { qk: Products, dyv: Products }

// q k^T and dy v^T of a tile. Rows are queries and columns are keys, or with `turned` the other way round.
fn products_of(batch: u32, h: u32, kvh: u32, i0: u32, j0: u32, turned: bool, l: vec3<u32>) -> BothProducts {
  let zero = Products(vec4<f32>(0.0), vec4<f32>(0.0));
  var qk = zero;
  var dyv = zero;
  for (var c0 = 0u; c0 < p.d; c0 += DC) {
    workgroupBarrier();
    for (var e = l.y * 16u + l.x; e < T * DC; e += 128u) {
      let r = e / DC;
      let c = c0 + e % DC;
      var query = vec2<f32>(0.0);
      var key = vec2<f32>(0.0);
      if (c < p.d && i0 + r < p.s) {
        let at = query_row(batch, i0 + r, h) + c;
        query = vec2<f32>(q[at], dy[at]);
      }
      if (c < p.d && j0 + r < p.t) {
        let at = key_row(batch, j0 + r, kvh) + c;
        key = vec2<f32>(k[at], v[at]);
      }
      let rows = select(query, key, turned);
      let across = select(key, query, turned);
      let to = r * LINE + e % DC;
      row_side[to] = rows.x;
      row_side2[to] = rows.y;
      column_side[to] = across.x;
      column_side2[to] = across.y;
    }
    workgroupBarrier();
    for (var c = 0u; c < DC; c++) {
      let near = l.x * LINE + c;
      let far = near + 16u * LINE;
      let rows = four_staged(l.y, c);
      let rows2 = four_staged2(l.y, c);
      qk.near = fma(rows, vec4<f32>(column_side[near]), qk.near);
      qk.far = fma(rows, vec4<f32>(column_side[far]), qk.far);
      dyv.near = fma(rows2, vec4<f32>(column_side2[near]), dyv.near);
      dyv.far = fma(rows2, vec4<f32>(column_side2[far]), dyv.far);
    }
  }
  return BothProducts(qk, dyv);
}

// What an invocation sums: its columns of four rows. One array per row: after unrolling over NJ every index is a constant,
// which keeps them in registers.
struct Rows { row0: array<vec4<f32>, NJ>, row1: array<vec4<f32>, NJ>, row2: array<vec4<f32>, NJ>, row3: array<vec4<f32>, NJ> }

// The same as one array that a rolled loop of stores can index by variables: it compiles 2 to 3 times faster on lavapipe.
fn in_line(rows: Rows) -> array<vec4<f32>, 4u * NJ> {
  var all = rows;
  var line: array<vec4<f32>, 4u * NJ>;
  for (var n = 0u; n < NJ; n++) {
    line[0u * NJ + n] = all.row0[n];
    line[1u * NJ + n] = all.row1[n];
    line[2u * NJ + n] = all.row2[n];
    line[3u * NJ + n] = all.row3[n];
  }
  return line;
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
  let end = end_of_keys(i0);
  var sums: Rows;
  var top = MASKED;
  var total = 0.0;
  for (var j0 = first_key(i0); j0 < end; j0 += T) {
    let qk = scores_of(batch, h, kvh, i0, j0, l);
    for (var r = 0u; r < 4u; r++) {
      let i = 4u * l.y + r;
      prob[i * TLINE + l.x] = select(MASKED, score(qk.near[r]), visible(batch, i0 + i, j0 + l.x));
      prob[i * TLINE + l.x + 16u] = select(MASKED, score(qk.far[r]), visible(batch, i0 + i, j0 + l.x + 16u));
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
      sums.row0[n] *= row_scale[4u * l.y + 0u];
      sums.row1[n] *= row_scale[4u * l.y + 1u];
      sums.row2[n] *= row_scale[4u * l.y + 2u];
      sums.row3[n] *= row_scale[4u * l.y + 3u];
    }
    for (var j = 0u; j < min(T, end - j0); j++) {
      let key = key_row(batch, j0 + j, kvh);
      let w = four_probs(l.y, j);
      for (var n = 0u; n < NJ; n++) {
        let c = key + columns(l.x, n);
        let value = vec4<f32>(v[c.x], v[c.y], v[c.z], v[c.w]);
        sums.row0[n] = fma(vec4<f32>(w.x), value, sums.row0[n]);
        sums.row1[n] = fma(vec4<f32>(w.y), value, sums.row1[n]);
        sums.row2[n] = fma(vec4<f32>(w.z), value, sums.row2[n]);
        sums.row3[n] = fma(vec4<f32>(w.w), value, sums.row3[n]);
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
  var line = in_line(sums);
  for (var r = 0u; r < min(4u, p.s - min(p.s, i0 + 4u * l.y)); r++) {
    let i = i0 + 4u * l.y + r;
    for (var m = 0u; 16u * m + l.x < p.d; m++) {
      let at = query_row(batch, i, h) + 16u * m + l.x;
      o[at] = line[r * NJ + m / 4u][m % 4u] * row_scale[4u * l.y + r];
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

@compute @workgroup_size(16, 8)
fn backward_q(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>) {
  let group = linear_group(wid, g);
  let blocks = (p.s + T - 1u) / T;
  let batch = group / blocks / p.h;
  if (batch >= p.b) { return; }
  let h = group / blocks % p.h;
  let kvh = h / (p.h / p.kv);
  let i0 = group % blocks * T;
  let end = end_of_keys(i0);
  var sums: Rows;
  for (var j0 = first_key(i0); j0 < end; j0 += T) {
    let tile = products_of(batch, h, kvh, i0, j0, false, l);
    for (var r = 0u; r < 4u; r++) {
      let i = 4u * l.y + r;
      grad[i * TLINE + l.x] = weight(batch, h, i0 + i, j0 + l.x, tile.qk.near[r], tile.dyv.near[r]).y;
      grad[i * TLINE + l.x + 16u] = weight(batch, h, i0 + i, j0 + l.x + 16u, tile.qk.far[r], tile.dyv.far[r]).y;
    }
    workgroupBarrier();
    for (var j = 0u; j < min(T, end - j0); j++) {
      let key = key_row(batch, j0 + j, kvh);
      let ds = four_grads(l.y, j);
      for (var n = 0u; n < NJ; n++) {
        let c = key + columns(l.x, n);
        let value = vec4<f32>(k[c.x], k[c.y], k[c.z], k[c.w]);
        sums.row0[n] = fma(vec4<f32>(ds.x), value, sums.row0[n]);
        sums.row1[n] = fma(vec4<f32>(ds.y), value, sums.row1[n]);
        sums.row2[n] = fma(vec4<f32>(ds.z), value, sums.row2[n]);
        sums.row3[n] = fma(vec4<f32>(ds.w), value, sums.row3[n]);
      }
    }
  }
  var line = in_line(sums);
  for (var r = 0u; r < min(4u, p.s - min(p.s, i0 + 4u * l.y)); r++) {
    let i = i0 + 4u * l.y + r;
    for (var m = 0u; 16u * m + l.x < p.d; m++) {
      let at = query_row(batch, i, h) + 16u * m + l.x;
      dq[at] = line[r * NJ + m / 4u][m % 4u];
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
  let heads = p.h / p.kv;
  let end = end_of_queries(j0);
  var sums_k: Rows;
  var sums_v: Rows;
  for (var h = kvh * heads; h < (kvh + 1u) * heads; h++) {
    for (var i0 = first_query(j0); i0 < end; i0 += T) {
      let tile = products_of(batch, h, kvh, i0, j0, true, l);
      for (var r = 0u; r < 4u; r++) {
        let j = 4u * l.y + r;
        let near = weight(batch, h, i0 + l.x, j0 + j, tile.qk.near[r], tile.dyv.near[r]);
        let far = weight(batch, h, i0 + l.x + 16u, j0 + j, tile.qk.far[r], tile.dyv.far[r]);
        prob[j * TLINE + l.x] = near.x;
        grad[j * TLINE + l.x] = near.y;
        prob[j * TLINE + l.x + 16u] = far.x;
        grad[j * TLINE + l.x + 16u] = far.y;
      }
      workgroupBarrier();
      for (var i = 0u; i < min(T, p.s - i0); i++) {
        let query = query_row(batch, i0 + i, h);
        let ds = four_grads(l.y, i);
        let w = four_probs(l.y, i);
        for (var n = 0u; n < NJ; n++) {
          let c = query + columns(l.x, n);
          let qv = vec4<f32>(q[c.x], q[c.y], q[c.z], q[c.w]);
          let dyv = vec4<f32>(dy[c.x], dy[c.y], dy[c.z], dy[c.w]);
          sums_k.row0[n] = fma(vec4<f32>(ds.x), qv, sums_k.row0[n]);
          sums_v.row0[n] = fma(vec4<f32>(w.x), dyv, sums_v.row0[n]);
          sums_k.row1[n] = fma(vec4<f32>(ds.y), qv, sums_k.row1[n]);
          sums_v.row1[n] = fma(vec4<f32>(w.y), dyv, sums_v.row1[n]);
          sums_k.row2[n] = fma(vec4<f32>(ds.z), qv, sums_k.row2[n]);
          sums_v.row2[n] = fma(vec4<f32>(w.z), dyv, sums_v.row2[n]);
          sums_k.row3[n] = fma(vec4<f32>(ds.w), qv, sums_k.row3[n]);
          sums_v.row3[n] = fma(vec4<f32>(w.w), dyv, sums_v.row3[n]);
        }
      }
    }
  }
  var line_k = in_line(sums_k);
  var line_v = in_line(sums_v);
  for (var r = 0u; r < min(4u, p.t - min(p.t, j0 + 4u * l.y)); r++) {
    let j = j0 + 4u * l.y + r;
    for (var m = 0u; 16u * m + l.x < p.d; m++) {
      let at = key_row(batch, j, kvh) + 16u * m + l.x;
      dk[at] = line_k[r * NJ + m / 4u][m % 4u];
      dv[at] = line_v[r * NJ + m / 4u][m % 4u];
    }
  }
}
