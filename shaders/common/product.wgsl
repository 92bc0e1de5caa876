// Fragment: the dense product c[m,n] = sum_k a[m,k] w[k,n] in blocks of 4 x 4, by one of three entries:
//   direct (blocks in registers alone), tile (through workgroup memory), vector (for few rows: k in slices)
// An invocation holds R rows (1, or a multiple of 4) and V vectors of four columns; a workgroup is X x Y invocations.
// TA: a is stored [K, M]; TB: w is stored [N, K]; EDGE: k is not a multiple of 4.
// Needs grid.wgsl, a4 and load_w4, in Params m, n, k, groups, a_stride, a_first, w_first, w_words, and from the shader
//   rows_end(), the number of rows of a, at most m; a_start(batch, row), where a row of a starts, the last again beyond it;
//   finish(batch, row, col, values), which stores the first min(R, 4) rows of a block and drops what lies beyond both ends.
const BLOCK: u32 = min(R, 4u);
const ROWS: u32 = R * Y;
const COLS: u32 = 4u * V * X;
struct Place { batch: u32, row: u32, col: u32 }

// The tile of c that a workgroup computes.
fn place(group: u32, rows: u32, cols: u32) -> Place {
  let across = (p.n + cols - 1u) / cols;
  let tiles = (p.m + rows - 1u) / rows * across;
  return Place(group / tiles, group % tiles / across * rows, group % across * cols);
}

// Whether a workgroup has nothing to do: of a folded grid, or behind the last row.
fn outside(at: Place) -> bool { return at.batch >= p.groups || at.row >= rows_end(); }

fn a_line(base: u32, k: u32, left: u32) -> vec4<f32> {
  return select(vec4<f32>(0.0), a4(base + min(k, p.k - 1u) * p.a_stride, left), EDGE == 0u || k < p.k);
}

// Rows row .. row + 4 of a, at k .. k + 4: zero beyond k, the last row again beyond m.
fn a_block(batch: u32, row: u32, k: u32) -> mat4x4<f32> {
  if (TA == 1u) {
    let base = batch * p.m * p.k + p.a_first;
    let i = min(row, p.m - 1u) & ~3u;
    let left = p.m - i;
    let at = base + i;
    var x = transpose(mat4x4<f32>(a_line(at, k, left), a_line(at, k + 1u, left), a_line(at, k + 2u, left), a_line(at, k + 3u, left)));
    // A single row may stand anywhere in its vector.
    if (R == 1u) { x[0] = x[row % 4u]; }
    return x;
  }
  let i = k + vec4<u32>(a_start(batch, row), a_start(batch, row + 1u), a_start(batch, row + 2u), a_start(batch, row + 3u));
  let left = p.k - k;
  return mat4x4<f32>(a4(i.x, left), a4(i.y, left), a4(i.z, left), a4(i.w, left));
}

fn w_line(first: u32, k: u32, col: u32) -> vec4<f32> {
  return select(vec4<f32>(0.0), load_w4(first + min(k, p.k - 1u), col), EDGE == 0u || k < p.k);
}

// Columns col .. col + 4 of w, at k .. k + 4 (one vector for each k).
fn w_block(batch: u32, k: u32, col: u32) -> mat4x4<f32> {
  if (TB == 1u) {
    let i = p.w_first + batch * p.n + min(vec4<u32>(col, col + 1u, col + 2u, col + 3u), vec4<u32>(p.n - 1u));
    return transpose(mat4x4<f32>(load_w4(i.x, k), load_w4(i.y, k), load_w4(i.z, k), load_w4(i.w, k)));
  }
  let j = min(col, (p.n - 1u) & ~3u);
  let first = p.w_first + batch * p.k;
  return mat4x4<f32>(w_line(first, k, j), w_line(first, k + 1u, j), w_line(first, k + 2u, j), w_line(first, k + 3u, j));
}

fn add_line(x: vec4<f32>, w: mat4x4<f32>, acc: vec4<f32>) -> vec4<f32> {
  return fma(vec4<f32>(x.w), w[3], fma(vec4<f32>(x.z), w[2], fma(vec4<f32>(x.y), w[1], fma(vec4<f32>(x.x), w[0], acc))));
}

fn add_blocks(batch: u32, row: u32, col: u32, k: u32, acc: ptr<function, array<vec4<f32>, R * V>>) {
  for (var c = 0u; c < V; c++) {
    let w = w_block(batch, k, col + 4u * c);
    for (var r = 0u; r < R; r += 4u) {
      let x = a_block(batch, row + r, k);
      let at = r * V + c;
      (*acc)[at] = add_line(x[0], w, (*acc)[at]);
      if (R > 1u) {
        (*acc)[at + V] = add_line(x[1], w, (*acc)[at + V]);
        (*acc)[at + 2u * V] = add_line(x[2], w, (*acc)[at + 2u * V]);
        (*acc)[at + 3u * V] = add_line(x[3], w, (*acc)[at + 3u * V]);
      }
    }
  }
}

// Blocks of four rows (or one) and four columns that an invocation holds, numbered along the columns first.
const BLOCKS: u32 = max(R / 4u, 1u) * V;
const LAST: u32 = R * V - 1u;

// The block whose first row and vector are at `at`.
fn rows_at(acc: ptr<function, array<vec4<f32>, R * V>>, at: u32) -> mat4x4<f32> {
  return mat4x4<f32>((*acc)[min(at, LAST)], (*acc)[min(at + V, LAST)], (*acc)[min(at + 2u * V, LAST)], (*acc)[min(at + 3u * V, LAST)]);
}

// Block b, chosen among all: an index of `acc` that is no constant would move every sum out of registers. Compilers
// that do not unroll the loop around a long `finish` would make it one.
fn block_of(acc: ptr<function, array<vec4<f32>, R * V>>, b: u32) -> mat4x4<f32> {
  var v = rows_at(acc, 0u);
  if (BLOCKS > 1u && b == 1u) { v = rows_at(acc, 1u / V * 4u * V + 1u % V); }
  if (BLOCKS > 2u && b == 2u) { v = rows_at(acc, 2u / V * 4u * V + 2u % V); }
  if (BLOCKS > 3u && b == 3u) { v = rows_at(acc, 3u / V * 4u * V + 3u % V); }
  return v;
}

@compute @workgroup_size(X, Y)
fn direct(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>) {
  let at = place(linear_group(wid, g), ROWS, COLS);
  let row = at.row + l.y * R;
  let col = at.col + l.x * 4u * V;
  if (outside(at) || row >= rows_end() || col >= p.n) { return; }
  var acc = array<vec4<f32>, R * V>();
  for (var k = 0u; k < p.k; k += 4u) { add_blocks(at.batch, row, col, k, &acc); }
  for (var b = 0u; b < BLOCKS; b++) { finish(at.batch, row + 4u * (b / V), col + 4u * (b % V), block_of(&acc, b)); }
}

// X slices of k for Y blocks of columns; the sums of the slices are added in order.
var<workgroup> slices: array<vec4<f32>, X * Y * R>;

@compute @workgroup_size(X, Y)
fn vector(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let at = place(linear_group(wid, g), R, 4u * Y);
  if (outside(at)) { return; }
  var acc = array<vec4<f32>, R * V>();
  for (var k = 4u * l.x; k < p.k; k += 4u * X) { add_blocks(at.batch, at.row, at.col + 4u * l.y, k, &acc); }
  for (var r = 0u; r < R; r++) { slices[lane * R + r] = acc[r]; }
  workgroupBarrier();
  let block = lane / Y * 4u;
  let column = lane % Y;
  if (block >= R || at.col + 4u * column >= p.n) { return; }
  var sum = mat4x4<f32>();
  for (var s = 0u; s < X; s++) {
    for (var r = 0u; r < BLOCK; r++) { sum[r] += slices[(column * X + s) * R + block + r]; }
  }
  finish(at.batch, at.row + block, at.col + 4u * column, sum);
}

const DEPTH: u32 = 16u;
// A vector more than there are blocks: the lines start in different banks.
const A_LINE: u32 = (ROWS + 3u) / 4u + 1u;
const W_LINE: u32 = COLS / 4u + 1u;
var<workgroup> a_tile: array<vec4<f32>, DEPTH * A_LINE>;
var<workgroup> w_tile: array<vec4<f32>, DEPTH * W_LINE>;

// The invocation at (x, y) holds blocks y + Y r of the rows and x + X c of the columns of the tile.
@compute @workgroup_size(X, Y)
fn tile(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let at = place(linear_group(wid, g), ROWS, COLS);
  if (outside(at)) { return; }
  const A_BLOCKS = (ROWS + 3u) / 4u;
  const W_BLOCKS = COLS / 4u;
  var acc = array<vec4<f32>, R * V>();
  for (var k = 0u; k < p.k; k += DEPTH) {
    workgroupBarrier();
    // Neighbouring lanes read along the contiguous axis.
    for (var i = lane; i < A_BLOCKS * DEPTH / 4u; i += X * Y) {
      let r = select(i / (DEPTH / 4u), i % A_BLOCKS, TA == 1u);
      let q = select(i % (DEPTH / 4u), i / A_BLOCKS, TA == 1u) * 4u;
      var v = mat4x4<f32>();
      if (k + q < p.k) { v = transpose(a_block(at.batch, at.row + 4u * r, k + q)); }
      for (var s = 0u; s < 4u; s++) { a_tile[(q + s) * A_LINE + r] = v[s]; }
    }
    for (var i = lane; i < W_BLOCKS * DEPTH / 4u; i += X * Y) {
      let c = select(i % W_BLOCKS, i / (DEPTH / 4u), TB == 1u);
      let q = select(i / W_BLOCKS, i % (DEPTH / 4u), TB == 1u) * 4u;
      var v = mat4x4<f32>();
      if (k + q < p.k) { v = w_block(at.batch, k + q, at.col + 4u * c); }
      for (var s = 0u; s < 4u; s++) { w_tile[(q + s) * W_LINE + c] = v[s]; }
    }
    workgroupBarrier();
    for (var q = 0u; q < DEPTH; q++) {
      for (var r = 0u; r < R; r += 4u) {
        let x = a_tile[q * A_LINE + l.y + r / 4u * Y];
        for (var c = 0u; c < V; c++) {
          let w = w_tile[q * W_LINE + l.x + c * X];
          let i = r * V + c;
          acc[i] = fma(vec4<f32>(x.x), w, acc[i]);
          acc[i + V] = fma(vec4<f32>(x.y), w, acc[i + V]);
          acc[i + 2u * V] = fma(vec4<f32>(x.z), w, acc[i + 2u * V]);
          acc[i + 3u * V] = fma(vec4<f32>(x.w), w, acc[i + 3u * V]);
        }
      }
    }
  }
  for (var b = 0u; b < BLOCKS; b++) {
    finish(at.batch, at.row + 4u * (l.y + b / V * Y), at.col + 4u * (l.x + b % V * X), block_of(&acc, b));
  }
}
