// Fragment: load_w(row, col) of a weight stored as q6_k in words `w`, p.w_words to a row.
// Row: blocks of 52 words (32 of low bits, 16 of high bits, 4 of scales), then the blocks' scales, two to a word. Needs half.
fn load_w(row: u32, col: u32) -> f32 {
  let row_at = row * p.w_words;
  let block = col / 256u;
  let at = row_at + block * 52u;
  let half_block = col / 128u % 2u;
  let quarter = col / 32u % 4u;
  let shift = 8u * (col % 4u);
  let low = (w[at + half_block * 16u + quarter % 2u * 8u + col / 4u % 8u] >> (shift + 4u * (quarter / 2u))) & 15u;
  let high = (w[at + 32u + half_block * 8u + col / 4u % 8u] >> (shift + 2u * quarter)) & 3u;
  let e = col / 16u % 16u;
  let scale = bitcast<i32>(w[at + 48u + e / 4u] << (24u - 8u * (e % 4u))) >> 24u;
  let d = half(w[row_at + 2u * p.w_words / 105u * 52u + block / 2u] >> (16u * (block % 2u)));
  return d * f32(scale) * (f32(low | (high << 4u)) - 32.0);
}
