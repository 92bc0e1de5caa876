// head_product.wgsl - the products of head_loss.wgsl for the rows of its list:
//                     STEP 0: z[i] = h[list[i]] w^T;  STEP 1: dh[list[i]] = shrink[i] dh[list[i]] + z[i] w
// Entries   : direct, tile, vector (common/product.wgsl), stream (common/product_stream.wgsl),
//             ahead (common/product_ahead.wgsl)
// Shapes    : a = h [R, D] | z [n, a_stride]  w [rows of a shard, D] packed, from w_first on  list [1 + R]: n, then the rows
//             state [n]: shrink is the last of four  c = z [n, line] | dh [R, line]
// Grid      : ceil(R / rows) * ceil(N / columns) workgroups folded to 2-D; what lies beyond n ends at once
// Prelude   : R, V, X, Y, LANES (src/engine/product.rs); TA = 0; TB = 1 - STEP; EDGE = 0 | 1;
//             fragments product, read4, load4_<format>, grid, half
// Precision : accumulates f32
// Limits    : tile, ahead: 8704 B shared; vector, stream: 8192 B shared; 64 invocations; 5 bindings; no subgroups
// Cost      : 2*n*V*D flop each (compute bound)
// CPU       : src/ops/head_loss/cpu.rs
struct Params {
  m: u32, n: u32, k: u32, groups: u32, a_stride: u32, a_first: u32, w_first: u32, w_words: u32, line: u32,
}
@group(0) @binding(1) var<storage, read> w: array<u32>;
@group(0) @binding(2) var<storage, read> list: array<u32>;
@group(0) @binding(3) var<storage, read> state: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> c: array<f32>;

fn rows_end() -> u32 { return list[0]; }

fn a_start(batch: u32, row: u32) -> u32 {
  let i = min(row, max(list[0], 1u) - 1u);
  if (STEP == 1u) { return i * p.a_stride; }
  return list[1u + i] * p.a_stride;
}

fn finish(batch: u32, row: u32, col: u32, values: mat4x4<f32>) {
  var v = values;
  let end = min(row + BLOCK, list[0]);
  for (var i = row; i < end; i++) {
    let line = v[i - row];
    var at = i * p.line + col;
    if (STEP == 1u) { at = list[1u + i] * p.line + col; }
    for (var j = 0u; j < min(4u, p.n - min(col, p.n)); j++) {
      if (STEP == 1u) {
        c[at + j] = fma(state[i].w, c[at + j], line[j]);
      } else {
        c[at + j] = line[j];
      }
    }
  }
}
