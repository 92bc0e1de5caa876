// select.wgsl - mask[m,e] = 1 if the rule selects entry e of the row scores[m,..], else 0
// Entries   : forward
// Shapes    : scores, mask [M, E]        (row-major, contiguous)
// Grid      : ceil(M*E / WG) folded to 2-D; one invocation = one entry
// Prelude   : WG = 256; order.wgsl
// Precision : exact, but for the sums of rules 1 and 2: f32, in the order of positions
// Limits    : 2 bindings
// Cost      : M*E*E comparisons, 8*M*E bytes (a row is read from cache)
// CPU       : src/ops/select.rs
// rule = 0: fewer than `count` entries come before e; 1: the same, or their sum and e are at most `bound`; 2: the same,
// or their sum is at most `bound`; 3: the score is above `bound`.
struct Params { n: u32, e: u32, rule: u32, count: u32, bound: f32 }
@group(0) @binding(0) var<storage, read> scores: array<u32>;
@group(0) @binding(1) var<storage, read_write> mask: array<f32>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(wid, g) * WG + l;
  if (i >= p.n) { return; }
  let base = i / p.e * p.e;
  let score = bitcast<f32>(scores[i]);
  let mine = key(scores[i]);
  var rank = 0u;
  var sum = 0.0;
  for (var c = 0u; c < p.e; c++) {
    let other = scores[base + c];
    if (before(key(other), c, mine, i - base)) {
      rank++;
      sum += bitcast<f32>(other);
    }
  }
  var on = rank < p.count;
  if (p.rule == 1u) { on = on || sum + score <= p.bound; }
  if (p.rule == 2u) { on = on || sum <= p.bound; }
  if (p.rule == 3u) { on = score > p.bound; }
  mask[i] = select(0.0, 1.0, on);
}
