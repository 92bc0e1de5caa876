// Fragment: load_w4(row, col), four values of a weight stored as bf16 in words `w`; col is a multiple of 4.
fn load_w4(row: u32, col: u32) -> vec4<f32> {
  let at = row * p.w_words + col / 2u;
  let v = vec2<u32>(w[at], w[at + 1u]);
  return bitcast<vec4<f32>>(vec4<u32>(v.x << 16u, v.x & 0xffff0000u, v.y << 16u, v.y & 0xffff0000u));
}
