// Fragment: load_w4(row, col), four values of a weight stored as q4_1 in words `w`; layout as in load_q4_1. Needs half.
fn load_w4(row: u32, col: u32) -> vec4<f32> {
  let at = row * p.w_words;
  let block = col / 32u;
  let s = w[at + p.w_words / 5u * 4u + block];
  let q = vec4<u32>(w[at + block * 4u + col / 4u % 4u] >> (4u * (col / 16u % 2u))) >> vec4<u32>(0u, 8u, 16u, 24u);
  return vec4<f32>(q & vec4<u32>(15u)) * half(s) + half(s >> 16u);
}
