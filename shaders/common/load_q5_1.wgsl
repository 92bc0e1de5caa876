// Fragment: load_w(row, col) of a weight stored as q5_1 in words `w`, p.w_words to a row.
// Row: 4 words of quants per block, then a word of fifth bits each, then scale and minimum of each. Needs half.
fn load_w(row: u32, col: u32) -> f32 {
  let at = row * p.w_words;
  let block = col / 32u;
  let blocks = p.w_words / 6u;
  let s = w[at + blocks * 5u + block];
  let high = (w[at + blocks * 4u + block] >> (col % 32u)) & 1u;
  let q = (w[at + block * 4u + col / 4u % 4u] >> (8u * (col % 4u) + 4u * (col / 16u % 2u))) & 15u;
  return f32(q | (high << 4u)) * half(s) + half(s >> 16u);
}
