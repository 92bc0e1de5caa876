// Fragment: load_w(row, col) of a weight stored as q4_1 in words `w`, p.w_words to a row.
// Row: 4 words of quants per block, then scale and minimum of each block. Needs half.
fn load_w(row: u32, col: u32) -> f32 {
  let at = row * p.w_words;
  let block = col / 32u;
  let s = w[at + p.w_words / 5u * 4u + block];
  let q = (w[at + block * 4u + col / 4u % 4u] >> (8u * (col % 4u) + 4u * (col / 16u % 2u))) & 15u;
  return f32(q) * half(s) + half(s >> 16u);
}
