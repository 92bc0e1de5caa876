// Fragment: load_w4(row, col), four values of a weight stored as q5_k in words `w`; layout as in load_q5_k. Needs half.
fn load_w4(row: u32, col: u32) -> vec4<f32> {
  let at = row * p.w_words + col / 256u * 44u;
  let g = col / 32u % 8u;
  let s = vec3<u32>(w[at + 1u], w[at + 2u], w[at + 3u]) >> vec3<u32>(8u * (g % 4u));
  let scale = select(s.x & 63u, (s.z & 15u) | ((s.x >> 2u) & 48u), g >= 4u);
  let minimum = select(s.y & 63u, ((s.z >> 4u) & 15u) | ((s.y >> 2u) & 48u), g >= 4u);
  let d = w[at];
  let bytes = vec4<u32>(0u, 8u, 16u, 24u);
  let high = (vec4<u32>(w[at + 4u + col / 4u % 8u] >> g) >> bytes) & vec4<u32>(1u);
  let q = vec4<u32>(w[at + 12u + g / 2u * 8u + col / 4u % 8u] >> (4u * (g % 2u))) >> bytes;
  return half(d) * f32(scale) * vec4<f32>((q & vec4<u32>(15u)) | (high << vec4<u32>(4u))) - half(d >> 16u) * f32(minimum);
}
