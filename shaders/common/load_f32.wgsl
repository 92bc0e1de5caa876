// Fragment: load_w(row, col) of a weight stored as f32 in words `w`, p.w_words to a row.
fn load_w(row: u32, col: u32) -> f32 {
  return bitcast<f32>(w[row * p.w_words + col]);
}
