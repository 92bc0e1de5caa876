// Fragment: load_w4(row, col), four values of a weight stored as f16 in words `w`; col is a multiple of 4.
fn load_w4(row: u32, col: u32) -> vec4<f32> {
  let at = row * p.w_words + col / 2u;
  return vec4<f32>(unpack2x16float(w[at]), unpack2x16float(w[at + 1u]));
}
