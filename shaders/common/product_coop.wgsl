// Fragment: the entry `coop` of a dense product c = a w^T: operands rounded to f16, sums in f32, by cooperative matrices.
// The tile of c that a workgroup of LANES invocations computes has 4 SIDE x 8 SIDE values (ROWS x COLS), a quarter for
// each of its first four subgroups. Subgroups beyond these, of devices where their size varies, only load.
// Needs product.wgsl, and coop_8.wgsl or coop_16.wgsl; TA = 0, TB = 1.
// Lines along k start in different banks, at multiples of 16 bytes.
const LINE: u32 = DEPTH + 8u;
// Vectors of four along k in a step, and how many of them an invocation loads.
const A_VECTORS: u32 = ROWS * DEPTH / 4u;
const W_VECTORS: u32 = COLS * DEPTH / 4u;
const A_LOADS: u32 = (A_VECTORS + LANES - 1u) / LANES;
const W_LOADS: u32 = (W_VECTORS + LANES - 1u) / LANES;
var<workgroup> a_halves: array<f16, ROWS * LINE>;
var<workgroup> w_halves: array<f16, COLS * LINE>;
// One matrix of each subgroup.
var<workgroup> sums: array<f32, 4u * SIDE * SIDE>;

// What the invocation loads of a step; zero beyond k.
fn load_a(batch: u32, row: u32, k: u32, lane: u32, next: ptr<function, array<vec4<f32>, A_LOADS>>) {
  for (var j = 0u; j < A_LOADS; j++) {
    let i = lane + j * LANES;
    let q = k + i % (DEPTH / 4u) * 4u;
    (*next)[j] = vec4<f32>(0.0);
    if (q < p.k) { (*next)[j] = a4(a_start(batch, row + i / (DEPTH / 4u)) + q, p.k - q); }
  }
}

fn load_columns(batch: u32, col: u32, k: u32, lane: u32, next: ptr<function, array<vec4<f32>, W_LOADS>>) {
  for (var j = 0u; j < W_LOADS; j++) {
    let i = lane + j * LANES;
    let q = k + i % (DEPTH / 4u) * 4u;
    (*next)[j] = vec4<f32>(0.0);
    if (q < p.k) { (*next)[j] = load_w4(p.w_first + batch * p.n + min(col + i / (DEPTH / 4u), p.n - 1u), q); }
  }
}

@compute @workgroup_size(LANES)
fn coop(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) lane: u32, @builtin(subgroup_id) subgroup: u32) {
  let at = place(linear_group(wid, g), ROWS, COLS);
  // A group too many (of a folded grid) computes the last batch again and stores nothing: naga takes no return.
  let batch = min(at.batch, p.groups - 1u);
  let top = subgroup % 4u / 2u * 2u * SIDE;
  let left = subgroup % 2u * 4u * SIDE;
  var s00 = Sum();
  var s01 = Sum();
  var s02 = Sum();
  var s03 = Sum();
  var s10 = Sum();
  var s11 = Sum();
  var s12 = Sum();
  var s13 = Sum();
  var a_next = array<vec4<f32>, A_LOADS>();
  var w_next = array<vec4<f32>, W_LOADS>();
  load_a(batch, at.row, 0u, lane, &a_next);
  load_columns(batch, at.col, 0u, lane, &w_next);
  for (var k = 0u; k < p.k; k += DEPTH) {
    workgroupBarrier();
    for (var j = 0u; j < A_LOADS; j++) {
      let i = lane + j * LANES;
      let to = i / (DEPTH / 4u) * LINE + i % (DEPTH / 4u) * 4u;
      let v = vec4<f16>(a_next[j]);
      if (i < A_VECTORS) { a_halves[to] = v.x; a_halves[to + 1u] = v.y; a_halves[to + 2u] = v.z; a_halves[to + 3u] = v.w; }
    }
    for (var j = 0u; j < W_LOADS; j++) {
      let i = lane + j * LANES;
      let to = i / (DEPTH / 4u) * LINE + i % (DEPTH / 4u) * 4u;
      let v = vec4<f16>(w_next[j]);
      if (i < W_VECTORS) { w_halves[to] = v.x; w_halves[to + 1u] = v.y; w_halves[to + 2u] = v.z; w_halves[to + 3u] = v.w; }
    }
    workgroupBarrier();
    // The next step is on its way while this one is multiplied.
    load_a(batch, at.row, k + DEPTH, lane, &a_next);
    load_columns(batch, at.col, k + DEPTH, lane, &w_next);
    for (var q = 0u; q < DEPTH; q += SIDE) {
      let a0 = coopLoadT<Left>(&a_halves[top * LINE + q], LINE);
      let a1 = coopLoadT<Left>(&a_halves[(top + SIDE) * LINE + q], LINE);
      let w0 = coopLoad<Right>(&w_halves[left * LINE + q], LINE);
      let w1 = coopLoad<Right>(&w_halves[(left + SIDE) * LINE + q], LINE);
      let w2 = coopLoad<Right>(&w_halves[(left + 2u * SIDE) * LINE + q], LINE);
      let w3 = coopLoad<Right>(&w_halves[(left + 3u * SIDE) * LINE + q], LINE);
      s00 = coopMultiplyAdd(a0, w0, s00);
      s01 = coopMultiplyAdd(a0, w1, s01);
      s02 = coopMultiplyAdd(a0, w2, s02);
      s03 = coopMultiplyAdd(a0, w3, s03);
      s10 = coopMultiplyAdd(a1, w0, s10);
      s11 = coopMultiplyAdd(a1, w1, s11);
      s12 = coopMultiplyAdd(a1, w2, s12);
      s13 = coopMultiplyAdd(a1, w3, s13);
    }
  }
  for (var b = 0u; b < 8u; b++) {
    workgroupBarrier();
    if (subgroup < 4u) {
      // The writer for SPIR-V takes a stored place only by name.
      let i = subgroup * SIDE * SIDE;
      if (b == 0u) { coopStoreT(s00, &sums[i], SIDE); }
      if (b == 1u) { coopStoreT(s01, &sums[i], SIDE); }
      if (b == 2u) { coopStoreT(s02, &sums[i], SIDE); }
      if (b == 3u) { coopStoreT(s03, &sums[i], SIDE); }
      if (b == 4u) { coopStoreT(s10, &sums[i], SIDE); }
      if (b == 5u) { coopStoreT(s11, &sums[i], SIDE); }
      if (b == 6u) { coopStoreT(s12, &sums[i], SIDE); }
      if (b == 7u) { coopStoreT(s13, &sums[i], SIDE); }
    }
    workgroupBarrier();
    for (var i = lane; i < SIDE * SIDE / 4u; i += LANES) {
      let quarter = i / (SIDE * SIDE / 16u);
      let r = i / (SIDE / 4u) % (SIDE / 4u) * 4u;
      let c = i % (SIDE / 4u) * 4u;
      let first = (quarter * SIDE + r) * SIDE + c;
      var v = mat4x4<f32>();
      for (var s = 0u; s < 16u; s++) { v[s / 4u][s % 4u] = sums[first + s / 4u * SIDE + s % 4u]; }
      let row = at.row + (quarter / 2u * 2u + b / 4u) * SIDE + r;
      if (at.batch == batch) { finish(batch, row, at.col + (quarter % 2u * 4u + b % 4u) * SIDE + c, v); }
    }
  }
}
