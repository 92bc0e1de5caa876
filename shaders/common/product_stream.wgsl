// Fragment: the entry `stream` of a dense product c = a w^T of few rows, which reads every weight once.
// An invocation multiplies R rows of a by four rows of w, in pieces of PIECE weights as they are stored; X slices of k
// for Y groups of columns, which are added in pairs. Scales are applied to sums.
// Needs product.wgsl, piece.wgsl, piece_<format>.wgsl, words4.wgsl; TA = 0, TB = 1, k a multiple of PIECE.
const PART: u32 = PIECE / PARTS;

// Adds quad q of a part of four pieces times that of each row of a; `totals` are sums of a.
fn add_quad(part: u32, q: u32, k: u32, pieces: ptr<function, array<Piece, 4>>, starts: ptr<function, array<u32, R>>,
    sums: ptr<function, array<vec4<f32>, R>>, totals: ptr<function, array<f32, R>>) {
  let w = transpose(mat4x4<f32>(
    quad((*pieces)[0], part, q), quad((*pieces)[1], part, q), quad((*pieces)[2], part, q), quad((*pieces)[3], part, q)));
  for (var r = 0u; r < R; r++) {
    let x = a4((*starts)[r] + k + part * PART + 4u * q, 4u);
    (*sums)[r] = add_line(x, w, (*sums)[r]);
    if (SCALED == 1u) { (*totals)[r] += x.x + x.y + (x.z + x.w); }
  }
}

// Adds a part of four pieces times that of each row of a. Written out, since only constants may choose a word.
fn add_part(part: u32, k: u32, pieces: ptr<function, array<Piece, 4>>, starts: ptr<function, array<u32, R>>,
    acc: ptr<function, array<vec4<f32>, R * V>>) {
  var sums = array<vec4<f32>, R>();
  var totals = array<f32, R>();
  add_quad(part, 0u, k, pieces, starts, &sums, &totals);
  if (PART > 4u) { add_quad(part, 1u, k, pieces, starts, &sums, &totals); }
  if (PART > 8u) {
    add_quad(part, 2u, k, pieces, starts, &sums, &totals);
    add_quad(part, 3u, k, pieces, starts, &sums, &totals);
  }
  if (PART > 16u) {
    add_quad(part, 4u, k, pieces, starts, &sums, &totals);
    add_quad(part, 5u, k, pieces, starts, &sums, &totals);
    add_quad(part, 6u, k, pieces, starts, &sums, &totals);
    add_quad(part, 7u, k, pieces, starts, &sums, &totals);
  }
  let x = vec4<f32>((*pieces)[0].scale[part], (*pieces)[1].scale[part], (*pieces)[2].scale[part], (*pieces)[3].scale[part]);
  let m = vec4<f32>((*pieces)[0].minimum[part], (*pieces)[1].minimum[part], (*pieces)[2].minimum[part], (*pieces)[3].minimum[part]);
  for (var r = 0u; r < R; r++) {
    if (SCALED == 1u) {
      (*acc)[r] = fma(x, sums[r], fma(m, vec4<f32>(-totals[r]), (*acc)[r]));
    } else {
      (*acc)[r] += sums[r];
    }
  }
}

@compute @workgroup_size(X, Y)
fn stream(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let at = place(linear_group(wid, g), R, 4u * Y);
  if (outside(at)) { return; }
  let col = at.col + 4u * l.y;
  let rows = (p.w_first + at.batch * p.n + min(vec4<u32>(col, col + 1u, col + 2u, col + 3u), vec4<u32>(p.n - 1u))) * p.w_words;
  var starts = array<u32, R>();
  for (var r = 0u; r < R; r++) { starts[r] = a_start(at.batch, at.row + r); }
  var acc = array<vec4<f32>, R * V>();
  for (var k = PIECE * l.x; k < p.k; k += PIECE * X) {
    var pieces = array<Piece, 4>(piece(rows.x, k), piece(rows.y, k), piece(rows.z, k), piece(rows.w, k));
    add_part(0u, k, &pieces, &starts, &acc);
    if (PARTS > 1u) { add_part(1u, k, &pieces, &starts, &acc); }
  }
  for (var r = 0u; r < R; r++) { slices[lane * R + r] = acc[r]; }
  for (var s = X / 2u; s > 0u; s /= 2u) {
    workgroupBarrier();
    if (l.x < s) {
      for (var r = 0u; r < R; r++) { slices[lane * R + r] += slices[(lane + s) * R + r]; }
    }
  }
  workgroupBarrier();
  let block = lane / Y * 4u;
  let column = at.col + lane % Y * 4u;
  if (block >= R || column >= p.n) { return; }
  var sum = mat4x4<f32>();
  for (var r = 0u; r < BLOCK; r++) { sum[r] = slices[lane % Y * X * R + block + r]; }
  finish(at.batch, at.row + block, column, sum);
}
