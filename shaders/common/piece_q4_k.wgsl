// Fragment: pieces of a weight stored as q4_k; layout as in load_q4_k. Needs piece, words4, half.
const PIECE: u32 = 64u;
const PARTS: u32 = 2u;
const SCALED: u32 = 1u;
fn piece(row: u32, k: u32) -> Piece {
  let block = row + k / 256u * 36u;
  let at = block + 4u + k / 64u % 4u * 8u;
  let scales = group_scales(words4(block), k / 32u % 8u);
  return Piece(words4(at), words4(at + 4u), vec4<u32>(0u), vec4<u32>(0u), scales[0], scales[1]);
}
fn quad(x: Piece, part: u32, q: u32) -> vec4<f32> {
  return bytes((word_of(x.low, x.high, q) >> (4u * part)) & 0x0f0f0f0fu);
}
