// Fragment: load_w(row, col) of a weight stored as f16 in words `w`, p.w_words to a row.
fn load_w(row: u32, col: u32) -> f32 {
  let v = unpack2x16float(w[row * p.w_words + col / 2u]);
  return select(v.x, v.y, col % 2u == 1u);
}
