// Fragment: load_w(row, col) of a weight stored as q4_k in words `w`, p.w_words to a row.
// Row: blocks of 36 words as in ggml: scale and minimum, 12 bytes of 6-bit ones, 128 bytes of quants. Needs half.
fn load_w(row: u32, col: u32) -> f32 {
  let at = row * p.w_words + col / 256u * 36u;
  let g = col / 32u % 8u;
  // 6-bit scales and minimums: four of each in a word, the rest split between the third word and the upper bits.
  let s = vec3<u32>(w[at + 1u], w[at + 2u], w[at + 3u]) >> vec3<u32>(8u * (g % 4u));
  let scale = select(s.x & 63u, (s.z & 15u) | ((s.x >> 2u) & 48u), g >= 4u);
  let minimum = select(s.y & 63u, ((s.z >> 4u) & 15u) | ((s.y >> 2u) & 48u), g >= 4u);
  let d = w[at];
  let q = (w[at + 4u + g / 2u * 8u + col / 4u % 8u] >> (8u * (col % 4u) + 4u * (g % 2u))) & 15u;
  return half(d) * f32(scale) * f32(q) - half(d >> 16u) * f32(minimum);
}
