// Fragment: load_w(row, col) of a weight stored as bf16 in words `w`, p.w_words to a row.
fn load_w(row: u32, col: u32) -> f32 {
  let v = w[row * p.w_words + col / 2u];
  return bitcast<f32>(select(v << 16u, v & 0xffff0000u, col % 2u == 1u));
}
