// Fragment: load_w(row, col) of a weight stored as q8_0 in words `w`, p.w_words to a row.
// Row: 8 words of quants per block, then the scales, two to a word. Needs half.
fn load_w(row: u32, col: u32) -> f32 {
  let at = row * p.w_words;
  let block = col / 32u;
  let scales = at + 2u * p.w_words / 17u * 8u;
  let d = half(w[scales + block / 2u] >> (16u * (block % 2u)));
  let q = bitcast<i32>(w[at + col / 4u] << (24u - 8u * (col % 4u))) >> 24u;
  return f32(q) * d;
}
