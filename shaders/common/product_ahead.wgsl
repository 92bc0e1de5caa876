// Fragment: the entry `ahead` of a dense product: `tile` whose next step is on its way while this one is multiplied.
// Operands stay in workgroup memory as they are loaded, in vectors along their contiguous axis. Along k, row r of N is
// kept at r % 4 * N / 4 + r / 4, so that neighbouring invocations read neighbouring vectors.
// Needs product.wgsl; k a multiple of DEPTH.
const A_PITCH: u32 = select(ROWS + 2u, ROWS / 4u + 1u, TA == 1u);
const W_PITCH: u32 = select(COLS / 4u + 1u, COLS + 2u, TB == 1u);
const A_VECTORS: u32 = ROWS * DEPTH / 4u;
const W_VECTORS: u32 = COLS * DEPTH / 4u;
const A_EACH: u32 = (A_VECTORS + X * Y - 1u) / (X * Y);
const W_EACH: u32 = (W_VECTORS + X * Y - 1u) / (X * Y);
var<workgroup> a_step: array<vec4<f32>, select(DEPTH / 4u, DEPTH, TA == 1u) * A_PITCH>;
var<workgroup> w_step: array<vec4<f32>, select(DEPTH, DEPTH / 4u, TB == 1u) * W_PITCH>;

// Where vector i of a step starts in a and belongs in a_step, but for k.
fn a_from(at: Place, i: u32) -> u32 {
  if (TA == 1u) {
    let row = min(at.row + i % (ROWS / 4u) * 4u, (p.m - 1u) & ~3u);
    return at.batch * p.m * p.k + p.a_first + row + i / (ROWS / 4u) * p.a_stride;
  }
  return a_start(at.batch, at.row + i / (DEPTH / 4u)) + i % (DEPTH / 4u) * 4u;
}
fn a_to(i: u32) -> u32 {
  if (TA == 1u) { return i / (ROWS / 4u) * A_PITCH + i % (ROWS / 4u); }
  let row = i / (DEPTH / 4u);
  return i % (DEPTH / 4u) * A_PITCH + row % 4u * (ROWS / 4u) + row / 4u;
}
fn a_load(from_a: u32, k: u32) -> vec4<f32> {
  if (TA == 1u) { return a4(from_a + k * p.a_stride, 4u); }
  return a4(from_a + k, 4u);
}

// The row of w and the first column of vector i of a step, but for k.
fn w_from(at: Place, i: u32) -> vec2<u32> {
  if (TB == 1u) {
    let col = min(at.col + i / (DEPTH / 4u), p.n - 1u);
    return vec2<u32>(p.w_first + at.batch * p.n + col, i % (DEPTH / 4u) * 4u);
  }
  let col = min(at.col + i % (COLS / 4u) * 4u, (p.n - 1u) & ~3u);
  return vec2<u32>(p.w_first + at.batch * p.k + i / (COLS / 4u), col);
}
fn w_to(i: u32) -> u32 {
  if (TB == 0u) { return i / (COLS / 4u) * W_PITCH + i % (COLS / 4u); }
  let col = i / (DEPTH / 4u);
  return i % (DEPTH / 4u) * W_PITCH + col % 4u * (COLS / 4u) + col / 4u;
}
fn w_load(from_w: vec2<u32>, k: u32) -> vec4<f32> {
  if (TB == 1u) { return load_w4(from_w.x, from_w.y + k); }
  return load_w4(from_w.x + k, from_w.y);
}

// Rows 4 b .. 4 b + 4 of a at k 4 q .. 4 q + 4, and columns 4 b .. 4 b + 4 of w there (one vector for each k).
fn a_rows(q: u32, b: u32) -> mat4x4<f32> {
  if (TA == 1u) {
    let i = 4u * q * A_PITCH + b;
    return transpose(mat4x4<f32>(a_step[i], a_step[i + A_PITCH], a_step[i + 2u * A_PITCH], a_step[i + 3u * A_PITCH]));
  }
  let i = q * A_PITCH + b;
  return mat4x4<f32>(a_step[i], a_step[i + ROWS / 4u], a_step[i + ROWS / 2u], a_step[i + ROWS / 4u * 3u]);
}
fn w_cols(q: u32, b: u32) -> mat4x4<f32> {
  if (TB == 0u) {
    let i = 4u * q * W_PITCH + b;
    return mat4x4<f32>(w_step[i], w_step[i + W_PITCH], w_step[i + 2u * W_PITCH], w_step[i + 3u * W_PITCH]);
  }
  let i = q * W_PITCH + b;
  return transpose(mat4x4<f32>(w_step[i], w_step[i + COLS / 4u], w_step[i + COLS / 2u], w_step[i + COLS / 4u * 3u]));
}

@compute @workgroup_size(X, Y)
fn ahead(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let at = place(linear_group(wid, g), ROWS, COLS);
  if (outside(at)) { return; }
  var from_a = array<u32, A_EACH>();
  var from_w = array<vec2<u32>, W_EACH>();
  var a_next = array<vec4<f32>, A_EACH>();
  var w_next = array<vec4<f32>, W_EACH>();
  for (var j = 0u; j < A_EACH; j++) {
    from_a[j] = a_from(at, lane + j * X * Y);
    a_next[j] = a_load(from_a[j], 0u);
  }
  for (var j = 0u; j < W_EACH; j++) {
    from_w[j] = w_from(at, lane + j * X * Y);
    w_next[j] = w_load(from_w[j], 0u);
  }
  var acc = array<vec4<f32>, R * V>();
  for (var k = 0u; k < p.k; k += DEPTH) {
    workgroupBarrier();
    for (var j = 0u; j < A_EACH; j++) {
      let i = lane + j * X * Y;
      if (i < A_VECTORS) { a_step[a_to(i)] = a_next[j]; }
    }
    for (var j = 0u; j < W_EACH; j++) {
      let i = lane + j * X * Y;
      if (i < W_VECTORS) { w_step[w_to(i)] = w_next[j]; }
    }
    workgroupBarrier();
    // Behind the last step this reads that step again.
    let next = min(k + DEPTH, p.k - DEPTH);
    for (var j = 0u; j < A_EACH; j++) { a_next[j] = a_load(from_a[j], next); }
    for (var j = 0u; j < W_EACH; j++) { w_next[j] = w_load(from_w[j], next); }
    for (var q = 0u; q < DEPTH / 4u; q++) {
      for (var c = 0u; c < V; c++) {
        let w = w_cols(q, l.x + c * X);
        for (var r = 0u; r < R / 4u; r++) {
          let x = a_rows(q, l.y + r * Y);
          let i = 4u * r * V + c;
          acc[i] = add_line(x[0], w, acc[i]);
          acc[i + V] = add_line(x[1], w, acc[i + V]);
          acc[i + 2u * V] = add_line(x[2], w, acc[i + 2u * V]);
          acc[i + 3u * V] = add_line(x[3], w, acc[i + 3u * V]);
        }
      }
    }
  }
  for (var b = 0u; b < BLOCKS; b++) {
    finish(at.batch, at.row + 4u * (l.y + b / V * Y), at.col + 4u * (l.x + b % V * X), block_of(&acc, b));
  }
}
