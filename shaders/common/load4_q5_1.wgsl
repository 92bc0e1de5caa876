// Fragment: load_w4(row, col), four values of a weight stored as q5_1 in words `w`; layout as in load_q5_1. Needs half.
fn load_w4(row: u32, col: u32) -> vec4<f32> {
  let at = row * p.w_words;
  let block = col / 32u;
  let blocks = p.w_words / 6u;
  let s = w[at + blocks * 5u + block];
  let high = (vec4<u32>(w[at + blocks * 4u + block] >> (col % 32u)) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(1u);
  let q = vec4<u32>(w[at + block * 4u + col / 4u % 4u] >> (4u * (col / 16u % 2u))) >> vec4<u32>(0u, 8u, 16u, 24u);
  return vec4<f32>((q & vec4<u32>(15u)) | (high << vec4<u32>(4u))) * half(s) + half(s >> 16u);
}
