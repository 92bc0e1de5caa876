// topk_routing.wgsl - chooses K of E factors per routing unit, linear and side, in descending order of score
//   side A: score = z (SCORE 0) | sigmoid(z) + d (1) | |z + d| (2);   I = top K, lowest index first on ties
//   side B: score = z, or with a condition on A's choice (CFS): softmax(z) + lambda softmax(q),
//           q[e] = sum_k softmax_e(f_k C[I_k, e, k]) (CFS 1) | mean_k C[I_k, e] (CFS 2)
//   gates[k] = product over the sides of scale * softmax over the chosen scores (SCORE 1: scale K q / sum q)
// Entries   : forward, backward, table
// Shapes    : z, dz [G, L, SIDES, E]  bias [L, E]  idx [L, SIDES, G, K]  gates, dgates [L, G, K]  score_b [L, G, E]
//             table, dtable [L, E, E, S], or (CHOSEN) table [L, G, K, E] of A's choices   (S = K for CFS 1, 1 for CFS 2)
//             drow [L, G, S, E], or (CHOSEN) [L, G, K, E];  dz (SPARSE, one side) of the chosen logits alone, [G, L, K]
// Grid      : forward, backward: one item per (linear, unit): a workgroup (STRIDE = WG) or an invocation
//             (STRIDE = 1); table: one invocation = one element; folded to 2-D
// Prelude   : WG = 64; STRIDE = 1 | WG; K; SIDES = 1 | 2; SCORE, CFS = 0 | 1 | 2; GATED, SCALED, FORCED, CHOSEN, SPARSE = 0 | 1;
//             fragments grid, sum | sum_lane, best | best_lane
// Precision : f32; sums over E by WG partial sums, then a tree
// Limits    : 12*WG B shared; 7 bindings
// Cost      : about E * (K + 2 + 3K for CFS) flop per item (latency bound)
// Source    : Shen et al. 2024 (ACL, long.38); SMoRA arXiv:2501.15103; FlyLoRA   CPU: src/ops/topk_routing/mod.rs
struct Params { units: u32, linears: u32, e: u32, scale: f32, lambda: f32 }
@group(0) @binding(0) var<storage, read> z: array<f32>;
@group(0) @binding(1) var<storage, read> bias: array<f32>;
@group(0) @binding(2) var<storage, read> table_in: array<f32>;
@group(0) @binding(3) var<storage, read> forced: array<u32>;
@group(0) @binding(4) var<storage, read_write> idx: array<u32>;
@group(0) @binding(5) var<storage, read_write> gates: array<f32>;
@group(0) @binding(6) var<storage, read_write> score_b: array<f32>;

@group(0) @binding(3) var<storage, read> chosen_in: array<u32>;
@group(0) @binding(4) var<storage, read> dgates: array<f32>;
@group(0) @binding(5) var<storage, read_write> dz: array<f32>;
@group(0) @binding(6) var<storage, read_write> drow: array<f32>;

@group(0) @binding(0) var<storage, read> rows: array<f32>;
@group(0) @binding(1) var<storage, read> picks: array<u32>;
@group(0) @binding(2) var<storage, read_write> dtable: array<f32>;

const LOWEST: f32 = -3.4e38;
const NONE: u32 = 0xffffffffu;

struct Item { lid: u32, l: u32, unit: u32, live: bool }

fn item_of(w: vec3<u32>, g: vec3<u32>, lid: u32) -> Item {
  var at = linear_group(w, g);
  if (STRIDE == 1u) { at = at * WG + lid; }
  let n = p.linears * p.units;
  let safe = min(at, n - 1u);
  return Item(select(lid, 0u, STRIDE == 1u), safe / p.units, safe % p.units, at < n);
}

// First logit of a side.
fn row_of(item: Item, side: u32) -> u32 { return ((item.unit * p.linears + item.l) * SIDES + side) * p.e; }
// First choice of a side.
fn list_of(item: Item, side: u32) -> u32 { return ((item.l * SIDES + side) * p.units + item.unit) * K; }

fn sigmoid(v: f32) -> f32 { return 1.0 / (1.0 + exp(-v)); }

fn score_a(item: Item, e: u32) -> f32 {
  let v = z[row_of(item, 0u) + e];
  if (SCORE == 1u) { return sigmoid(v) + bias[item.l * p.e + e]; }
  if (SCORE == 2u) { return abs(v + bias[item.l * p.e + e]); }
  return v;
}

// The best entry that comes after `last` in descending order; a NaN counts as the lowest value.
fn next_best(score: f32, e: u32, first: bool, last: Best, best: Best) -> Best {
  let v = select(score, LOWEST, (bitcast<u32>(score) & 0x7fffffffu) > 0x7f800000u);
  let after = first || v < last.value || (v == last.value && e > last.index);
  if (after && (best.index == NONE || v > best.value)) { return Best(v, e); }
  return best;
}

// Largest entry and the sum of exponentials over E of one row of logits.
fn softmax_of(at: u32, lid: u32) -> vec2<f32> {
  var top = LOWEST;
  for (var e = lid; e < p.e; e += STRIDE) { top = max(top, z[at + e]); }
  top = workgroup_max(top, lid);
  var sum = 0.0;
  for (var e = lid; e < p.e; e += STRIDE) { sum += exp(z[at + e] - top); }
  return vec2<f32>(top, workgroup_sum(sum, lid));
}

fn slots() -> u32 { return select(1u, K, CFS == 1u); }
fn gradient_rows() -> u32 { return select(slots(), K, CHOSEN == 1u); }

fn condition(item: Item, factor: u32, e: u32, k: u32) -> f32 {
  if (CHOSEN == 1u) { return table_in[((item.l * p.units + item.unit) * K + k) * p.e + e]; }
  let s = select(0u, k, CFS == 1u);
  return table_in[((item.l * p.e + factor) * p.e + e) * slots() + s];
}

// What the condition needs: chosen A factors, the factor on each, softmax statistics per slot and of q.
struct Condition { a: array<u32, K>, f: array<f32, K>, top: array<f32, K>, sum: array<f32, K>, q_top: f32, q_sum: f32 }

fn q_at(item: Item, c: ptr<function, Condition>, e: u32) -> f32 {
  var q = 0.0;
  for (var k = 0u; k < K; k++) {
    let v = condition(item, (*c).a[k], e, k);
    if (CFS == 1u) { q += exp((*c).f[k] * v - (*c).top[k]) / (*c).sum[k]; } else { q += v / f32(K); }
  }
  return q;
}

fn condition_stats(item: Item, c: ptr<function, Condition>) {
  if (CFS == 1u) {
    for (var k = 0u; k < K; k++) {
      var top = LOWEST;
      for (var e = item.lid; e < p.e; e += STRIDE) { top = max(top, (*c).f[k] * condition(item, (*c).a[k], e, k)); }
      top = workgroup_max(top, item.lid);
      var sum = 0.0;
      for (var e = item.lid; e < p.e; e += STRIDE) { sum += exp((*c).f[k] * condition(item, (*c).a[k], e, k) - top); }
      (*c).top[k] = top;
      (*c).sum[k] = workgroup_sum(sum, item.lid);
    }
  }
  var top = LOWEST;
  for (var e = item.lid; e < p.e; e += STRIDE) { top = max(top, q_at(item, c, e)); }
  top = workgroup_max(top, item.lid);
  var sum = 0.0;
  for (var e = item.lid; e < p.e; e += STRIDE) { sum += exp(q_at(item, c, e) - top); }
  (*c).q_top = top;
  (*c).q_sum = workgroup_sum(sum, item.lid);
}

// Gates of chosen scores: softmax over them, or (SCORE 1) their share times K.
fn gates_of(score: ptr<function, array<f32, K>>) {
  var top = (*score)[0];
  for (var k = 1u; k < K; k++) { top = max(top, (*score)[k]); }
  var sum = 0.0;
  for (var k = 0u; k < K; k++) {
    if (SCORE != 1u) { (*score)[k] = exp((*score)[k] - top); }
    sum += (*score)[k];
  }
  let share = select(1.0, f32(K), SCORE == 1u) / sum;
  for (var k = 0u; k < K; k++) { (*score)[k] *= share; }
}

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let item = item_of(w, g, local);
  let lid = item.lid;
  let writes = item.live && lid == 0u;
  var cond: Condition;
  var alpha: array<f32, K>;
  var last = Best(0.0, 0u);
  for (var k = 0u; k < K; k++) {
    var best = Best(LOWEST, NONE);
    if (FORCED == 1u) {
      best.index = forced[list_of(item, 0u) + k];
    } else {
      for (var e = lid; e < p.e; e += STRIDE) { best = next_best(score_a(item, e), e, k == 0u, last, best); }
      best = workgroup_best(best, lid);
    }
    last = best;
    cond.a[k] = best.index;
    alpha[k] = score_a(item, best.index);
    if (writes) { idx[list_of(item, 0u) + k] = best.index; }
  }
  if (GATED == 1u) { gates_of(&alpha); }
  var beta: array<f32, K>;
  if (SIDES == 2u) {
    let row = row_of(item, 1u);
    let scratch = (item.l * p.units + item.unit) * p.e;
    if (CFS != 0u) {
      for (var k = 0u; k < K; k++) { cond.f[k] = select(1.0, p.scale * alpha[k], SCALED == 1u); }
      condition_stats(item, &cond);
      let ifs = softmax_of(row, lid);
      for (var e = lid; e < p.e; e += STRIDE) {
        let conditional = exp(q_at(item, &cond, e) - cond.q_top) / cond.q_sum;
        let score = fma(p.lambda, conditional, exp(z[row + e] - ifs.x) / ifs.y);
        if (item.live) { score_b[scratch + e] = score; }
      }
      workgroup_storage();
    }
    for (var k = 0u; k < K; k++) {
      var best = Best(LOWEST, NONE);
      if (FORCED == 1u) {
        best.index = forced[list_of(item, 1u) + k];
      } else {
        for (var e = lid; e < p.e; e += STRIDE) {
          var score = z[row + e];
          if (CFS != 0u) { score = score_b[scratch + e]; }
          best = next_best(score, e, k == 0u, last, best);
        }
        best = workgroup_best(best, lid);
      }
      last = best;
      beta[k] = z[row + best.index];
      if (CFS != 0u) { beta[k] = score_b[scratch + best.index]; }
      if (writes) { idx[list_of(item, 1u) + k] = best.index; }
    }
    if (GATED == 1u) { gates_of(&beta); }
  }
  if (GATED == 1u && writes) {
    for (var k = 0u; k < K; k++) {
      var gate = p.scale * alpha[k];
      if (SIDES == 2u) { gate *= p.scale * beta[k]; }
      gates[(item.l * p.units + item.unit) * K + k] = gate;
    }
  }
}

// Gradient of scores from the gradient of gates: through a softmax over the chosen, or through shares times K.
fn scores_from_gates(gate: ptr<function, array<f32, K>>, d: ptr<function, array<f32, K>>, total: f32) {
  var mean = 0.0;
  let share = select(1.0, f32(K), SCORE == 1u);
  for (var k = 0u; k < K; k++) { mean = fma((*gate)[k] / share, (*d)[k], mean); }
  for (var k = 0u; k < K; k++) {
    let d_score = (*d)[k] - mean;
    if (SCORE == 1u) { (*d)[k] = share / total * d_score; } else { (*d)[k] = (*gate)[k] * d_score; }
  }
}

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let item = item_of(w, g, local);
  let lid = item.lid;
  var cond: Condition;
  var alpha: array<f32, K>;
  var beta: array<f32, K>;
  var chosen_b: array<u32, K>;
  var total = 0.0;
  for (var k = 0u; k < K; k++) {
    cond.a[k] = chosen_in[list_of(item, 0u) + k];
    alpha[k] = score_a(item, cond.a[k]);
    total += alpha[k];
  }
  gates_of(&alpha);
  let row = row_of(item, SIDES - 1u);
  var ifs = vec2<f32>(0.0, 1.0);
  if (SIDES == 2u) {
    if (CFS != 0u) {
      for (var k = 0u; k < K; k++) { cond.f[k] = select(1.0, p.scale * alpha[k], SCALED == 1u); }
      condition_stats(item, &cond);
      ifs = softmax_of(row, lid);
    }
    for (var k = 0u; k < K; k++) {
      let e = chosen_in[list_of(item, 1u) + k];
      chosen_b[k] = e;
      beta[k] = z[row + e];
      if (CFS != 0u) {
        let conditional = exp(q_at(item, &cond, e) - cond.q_top) / cond.q_sum;
        beta[k] = fma(p.lambda, conditional, exp(z[row + e] - ifs.x) / ifs.y);
      }
    }
    gates_of(&beta);
  }
  var d_alpha: array<f32, K>;
  var d_beta: array<f32, K>;
  for (var k = 0u; k < K; k++) {
    let d = p.scale * dgates[(item.l * p.units + item.unit) * K + k];
    d_alpha[k] = d;
    if (SIDES == 2u) {
      d_alpha[k] = d * p.scale * beta[k];
      d_beta[k] = d * p.scale * alpha[k];
    }
  }
  if (SIDES == 2u) {
    scores_from_gates(&beta, &d_beta, 1.0);
    backward_b(item, row, ifs, &cond, &chosen_b, &d_beta, &d_alpha);
  }
  scores_from_gates(&alpha, &d_alpha, total);
  let row_a = row_of(item, 0u);
  if (SCORE == 1u) {
    for (var k = 0u; k < K; k++) {
      let s = sigmoid(z[row_a + cond.a[k]]);
      d_alpha[k] *= s * (1.0 - s);
    }
  }
  if (SPARSE == 1u) {
    if (item.live && lid == 0u) {
      for (var k = 0u; k < K; k++) { dz[(item.unit * p.linears + item.l) * K + k] = d_alpha[k]; }
    }
    return;
  }
  for (var e = lid; e < p.e; e += STRIDE) {
    var d = 0.0;
    for (var k = 0u; k < K; k++) { if (cond.a[k] == e) { d += d_alpha[k]; } }
    if (item.live) { dz[row_a + e] = d; }
  }
}

// From the gradient of B's chosen scores to its logits, to the condition's rows and, if these see A's gates, to A.
fn backward_b(
  item: Item, row: u32, ifs: vec2<f32>, c: ptr<function, Condition>, chosen: ptr<function, array<u32, K>>,
  d_score: ptr<function, array<f32, K>>, d_alpha: ptr<function, array<f32, K>>,
) {
  if (CFS == 0u) {
    for (var e = item.lid; e < p.e; e += STRIDE) {
      var d = 0.0;
      for (var k = 0u; k < K; k++) { if ((*chosen)[k] == e) { d += (*d_score)[k]; } }
      if (item.live) { dz[row + e] = d; }
    }
    return;
  }
  var mean1 = 0.0;
  var mean2 = 0.0;
  for (var k = 0u; k < K; k++) {
    let e = (*chosen)[k];
    mean1 = fma(exp(z[row + e] - ifs.x) / ifs.y, (*d_score)[k], mean1);
    mean2 = fma(exp(q_at(item, c, e) - (*c).q_top) / (*c).q_sum, (*d_score)[k], mean2);
  }
  for (var e = item.lid; e < p.e; e += STRIDE) {
    let d = d_at(e, chosen, d_score);
    if (item.live) { dz[row + e] = exp(z[row + e] - ifs.x) / ifs.y * (d - mean1); }
  }
  for (var k = 0u; k < gradient_rows(); k++) {
    var mean = 0.0;
    if (CFS == 1u) {
      for (var e = item.lid; e < p.e; e += STRIDE) {
        mean = fma(share_at(item, c, e, k), dq_at(item, c, e, mean2, chosen, d_score), mean);
      }
      mean = workgroup_sum(mean, item.lid);
    }
    var along = 0.0;
    for (var e = item.lid; e < p.e; e += STRIDE) {
      let dq = dq_at(item, c, e, mean2, chosen, d_score);
      var d = dq / f32(K);
      if (CFS == 1u) {
        d = share_at(item, c, e, k) * (dq - mean);
        along = fma(d, condition(item, (*c).a[k], e, k), along);
        d *= (*c).f[k];
      }
      if (item.live) { drow[((item.l * p.units + item.unit) * gradient_rows() + k) * p.e + e] = d; }
    }
    if (SCALED == 1u && CFS == 1u) { (*d_alpha)[k] = fma(p.scale, workgroup_sum(along, item.lid), (*d_alpha)[k]); }
  }
}

fn d_at(e: u32, chosen: ptr<function, array<u32, K>>, d_score: ptr<function, array<f32, K>>) -> f32 {
  var d = 0.0;
  for (var k = 0u; k < K; k++) { if ((*chosen)[k] == e) { d += (*d_score)[k]; } }
  return d;
}

fn share_at(item: Item, c: ptr<function, Condition>, e: u32, k: u32) -> f32 {
  return exp((*c).f[k] * condition(item, (*c).a[k], e, k) - (*c).top[k]) / (*c).sum[k];
}

fn dq_at(
  item: Item, c: ptr<function, Condition>, e: u32, mean: f32, chosen: ptr<function, array<u32, K>>,
  d_score: ptr<function, array<f32, K>>,
) -> f32 {
  let p2 = exp(q_at(item, c, e) - (*c).q_top) / (*c).q_sum;
  return p.lambda * p2 * (d_at(e, chosen, d_score) - mean);
}

// dtable[l, factor, e, s] = sum over units g (and, for CFS 2, choices k) with I = factor of drow[l, g, s, e]
@compute @workgroup_size(WG)
fn table(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = linear_group(w, g) * WG + lid;
  let n = slots();
  if (i >= p.linears * p.e * p.e * n) { return; }
  let s = i % n;
  let e = i / n % p.e;
  let factor = i / (n * p.e) % p.e;
  let l = i / (n * p.e * p.e);
  var sum = 0.0;
  for (var unit = 0u; unit < p.units; unit++) {
    let list = (l * SIDES * p.units + unit) * K;
    let row = rows[((l * p.units + unit) * n + s) * p.e + e];
    for (var k = 0u; k < K; k++) {
      if ((CFS == 2u || k == s) && picks[list + k] == factor) { sum += row; }
    }
  }
  dtable[i] = sum;
}
