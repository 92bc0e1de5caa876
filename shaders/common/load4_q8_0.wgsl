// Fragment: load_w4(row, col), four values of a weight stored as q8_0 in words `w`; layout as in load_q8_0. Needs half.
fn load_w4(row: u32, col: u32) -> vec4<f32> {
  let at = row * p.w_words;
  let block = col / 32u;
  let d = half(w[at + 2u * p.w_words / 17u * 8u + block / 2u] >> (16u * (block % 2u)));
  let q = bitcast<vec4<i32>>(vec4<u32>(w[at + col / 4u]) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u);
  return vec4<f32>(q) * d;
}
