// top_k.wgsl - index[n,j] = position of the j-th largest of x[n,0..D]; ties: lowest position first; NaN counts as smallest
// Entries   : pick (k rounds of a maximum, for few of many), rank (counts the larger ones, for short rows or many picks)
// Shapes    : x [N, D]  index [N, K], K <= D        (row-major, contiguous)
// Grid      : N workgroups folded to 2-D; one workgroup = one row
// Prelude   : WG = 64 | 256 (power of two); order.wgsl
// Precision : exact: values are compared as ordered integers, so that no mode of the device (flushed denormals, NaN)
//             changes the order
// Limits    : 8*WG B shared; 2 bindings; no subgroups
// Cost      : pick K*D, rank D*D comparisons a row; 4*N*(D + K) bytes
// CPU       : src/ops/top_k.rs
struct Params { n: u32, d: u32, k: u32 }
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> index: array<u32>;

var<workgroup> keys: array<u32, WG>;
var<workgroup> places: array<u32, WG>;

@compute @workgroup_size(WG)
fn pick(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let row = linear_group(wid, g);
  let live = row < p.n;
  let base = select(0u, row, live) * p.d;
  // Before everything: no key is as large.
  var last_key = 0xffffffffu;
  var last = 0u;
  for (var j = 0u; j < p.k; j++) {
    // After everything.
    var best_key = 0u;
    var best = 0xffffffffu;
    for (var c = l; c < p.d; c += WG) {
      let k = key(x[base + c]);
      if (before(last_key, last, k, c) && before(k, c, best_key, best)) {
        best_key = k;
        best = c;
      }
    }
    workgroupBarrier();
    keys[l] = best_key;
    places[l] = best;
    for (var half = WG / 2u; half > 0u; half = half / 2u) {
      workgroupBarrier();
      if (l < half && before(keys[l + half], places[l + half], keys[l], places[l])) {
        keys[l] = keys[l + half];
        places[l] = places[l + half];
      }
    }
    workgroupBarrier();
    last_key = keys[0];
    last = places[0];
    if (live && l == 0u) { index[row * p.k + j] = last; }
  }
}

@compute @workgroup_size(WG)
fn rank(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let row = linear_group(wid, g);
  let live = row < p.n;
  let base = select(0u, row, live) * p.d;
  for (var start = 0u; start < p.d; start += WG) {
    let c = start + l;
    let mine = key(x[base + min(c, p.d - 1u)]);
    var larger = 0u;
    for (var tile = 0u; tile < p.d; tile += WG) {
      workgroupBarrier();
      keys[l] = key(x[base + min(tile + l, p.d - 1u)]);
      workgroupBarrier();
      let count = min(WG, p.d - tile);
      for (var i = 0u; i < count; i++) {
        if (before(keys[i], tile + i, mine, c)) { larger++; }
      }
    }
    if (live && c < p.d && larger < p.k) { index[row * p.k + larger] = c; }
  }
}
