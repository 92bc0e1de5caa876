// Fragment: the entry `coop` of a dense product: operands rounded to f16, sums in f32, by cooperative matrices.
// The tile of c that a workgroup of LANES invocations computes has 4 SIDE x 4 SIDE values (ROWS x COLS), a quarter for
// each of its first four subgroups. Subgroups beyond these, of devices where their size varies, only load.
// Needs product.wgsl, and coop_8.wgsl or coop_16.wgsl.
// Lines start in different banks, at multiples of 16 bytes.
const A_HALVES: u32 = DEPTH + 8u;
const W_HALVES: u32 = COLS + 8u;
var<workgroup> a_halves: array<f16, ROWS * A_HALVES>;
var<workgroup> w_halves: array<f16, DEPTH * W_HALVES>;
// The upper or lower half of each quarter: SIDE rows of 2 SIDE columns.
var<workgroup> sums: array<f32, 8u * SIDE * SIDE>;

@compute @workgroup_size(LANES)
fn coop(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) lane: u32, @builtin(subgroup_id) subgroup: u32) {
  let at = place(linear_group(wid, g), ROWS, COLS);
  // A group too many (of a folded grid) computes the last batch again and stores nothing: naga takes no return.
  let batch = min(at.batch, p.groups - 1u);
  let top = subgroup % 4u / 2u * 2u * SIDE;
  let left = subgroup % 2u * 2u * SIDE;
  var sum00 = Sum();
  var sum01 = Sum();
  var sum10 = Sum();
  var sum11 = Sum();
  for (var k = 0u; k < p.k; k += DEPTH) {
    workgroupBarrier();
    for (var i = lane; i < ROWS / 4u * DEPTH / 4u; i += LANES) {
      let r = 4u * (i / (DEPTH / 4u));
      let q = 4u * (i % (DEPTH / 4u));
      var v = mat4x4<f32>();
      if (k + q < p.k) { v = a_block(batch, at.row + r, k + q); }
      for (var s = 0u; s < 16u; s++) { a_halves[(r + s / 4u) * A_HALVES + q + s % 4u] = f16(v[s / 4u][s % 4u]); }
    }
    for (var i = lane; i < COLS / 4u * DEPTH / 4u; i += LANES) {
      let c = 4u * select(i % (COLS / 4u), i / (DEPTH / 4u), TB == 1u);
      let q = 4u * select(i / (COLS / 4u), i % (DEPTH / 4u), TB == 1u);
      var v = mat4x4<f32>();
      if (k + q < p.k) { v = w_block(batch, k + q, at.col + c); }
      for (var s = 0u; s < 16u; s++) { w_halves[(q + s / 4u) * W_HALVES + c + s % 4u] = f16(v[s / 4u][s % 4u]); }
    }
    workgroupBarrier();
    for (var q = 0u; q < DEPTH; q += SIDE) {
      let i = top * A_HALVES + q;
      let j = q * W_HALVES + left;
      let a0 = coopLoadT<Left>(&a_halves[i], A_HALVES);
      let a1 = coopLoadT<Left>(&a_halves[i + SIDE * A_HALVES], A_HALVES);
      let w0 = coopLoadT<Right>(&w_halves[j], W_HALVES);
      let w1 = coopLoadT<Right>(&w_halves[j + SIDE], W_HALVES);
      sum00 = coopMultiplyAdd(a0, w0, sum00);
      sum01 = coopMultiplyAdd(a0, w1, sum01);
      sum10 = coopMultiplyAdd(a1, w0, sum10);
      sum11 = coopMultiplyAdd(a1, w1, sum11);
    }
  }
  const WIDE = 2u * SIDE;
  for (var lower = 0u; lower < 2u; lower++) {
    workgroupBarrier();
    if (subgroup < 4u) {
      // The writer for SPIR-V takes a stored place only by name.
      let i = subgroup * SIDE * WIDE;
      let j = i + SIDE;
      if (lower == 0u) {
        coopStoreT(sum00, &sums[i], WIDE);
        coopStoreT(sum01, &sums[j], WIDE);
      } else {
        coopStoreT(sum10, &sums[i], WIDE);
        coopStoreT(sum11, &sums[j], WIDE);
      }
    }
    workgroupBarrier();
    for (var i = lane; i < SIDE * WIDE / 4u; i += LANES) {
      let quarter = i / (SIDE * WIDE / 16u);
      let r = i / (WIDE / 4u) % (SIDE / 4u) * 4u;
      let c = i % (WIDE / 4u) * 4u;
      let first = (quarter * SIDE + r) * WIDE + c;
      var v = mat4x4<f32>();
      for (var s = 0u; s < 16u; s++) { v[s / 4u][s % 4u] = sums[first + s / 4u * WIDE + s % 4u]; }
      if (at.batch == batch) { finish(batch, at.row + quarter / 2u * WIDE + lower * SIDE + r, at.col + quarter % 2u * WIDE + c, v); }
    }
  }
}
