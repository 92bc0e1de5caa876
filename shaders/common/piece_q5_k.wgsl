// Fragment: pieces of a weight stored as q5_k; layout as in load_q5_k. Needs piece, words4, half.
const PIECE: u32 = 64u;
const PARTS: u32 = 2u;
const SCALED: u32 = 1u;
fn piece(row: u32, k: u32) -> Piece {
  let block = row + k / 256u * 44u;
  let at = block + 12u + k / 64u % 4u * 8u;
  let g = k / 32u % 8u;
  let scales = group_scales(words4(block), g);
  let bit = vec4<u32>(g);
  return Piece(words4(at), words4(at + 4u), words4(block + 4u) >> bit, words4(block + 8u) >> bit, scales[0], scales[1]);
}
fn quad(x: Piece, part: u32, q: u32) -> vec4<f32> {
  let fifth = ((word_of(x.low_bits, x.high_bits, q) >> part) & 0x01010101u) << 4u;
  return bytes(((word_of(x.low, x.high, q) >> (4u * part)) & 0x0f0f0f0fu) | fifth);
}
