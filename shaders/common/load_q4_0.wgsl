// Fragment: load_w(row, col) of a weight stored as q4_0 in words `w`, p.w_words to a row.
// Row: 4 words of quants per block, then the scales, two to a word. Needs half.
fn load_w(row: u32, col: u32) -> f32 {
  let at = row * p.w_words;
  let block = col / 32u;
  let scales = at + 2u * p.w_words / 9u * 4u;
  let d = half(w[scales + block / 2u] >> (16u * (block % 2u)));
  let q = (w[at + block * 4u + col / 4u % 4u] >> (8u * (col % 4u) + 4u * (col / 16u % 2u))) & 15u;
  return (f32(q) - 8.0) * d;
}
