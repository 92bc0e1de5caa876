// Fragment: load_w4(row, col), four values of a weight stored as q6_k in words `w`; layout as in load_q6_k. Needs half.
fn load_w4(row: u32, col: u32) -> vec4<f32> {
  let row_at = row * p.w_words;
  let block = col / 256u;
  let at = row_at + block * 52u;
  let half_block = col / 128u % 2u;
  let quarter = col / 32u % 4u;
  let bytes = vec4<u32>(0u, 8u, 16u, 24u);
  let low = vec4<u32>(w[at + half_block * 16u + quarter % 2u * 8u + col / 4u % 8u] >> (4u * (quarter / 2u))) >> bytes;
  let high = vec4<u32>(w[at + 32u + half_block * 8u + col / 4u % 8u] >> (2u * quarter)) >> bytes;
  let e = col / 16u % 16u;
  let scale = bitcast<i32>(w[at + 48u + e / 4u] << (24u - 8u * (e % 4u))) >> 24u;
  let d = half(w[row_at + 2u * p.w_words / 105u * 52u + block / 2u] >> (16u * (block % 2u)));
  let q = (low & vec4<u32>(15u)) | ((high & vec4<u32>(3u)) << vec4<u32>(4u));
  return d * f32(scale) * (vec4<f32>(q) - 32.0);
}
