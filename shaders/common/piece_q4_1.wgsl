// Fragment: pieces of a weight stored as q4_1; layout as in load_q4_1. Needs piece, words4, half.
const PIECE: u32 = 32u;
const PARTS: u32 = 1u;
const SCALED: u32 = 1u;
fn piece(row: u32, k: u32) -> Piece {
  let block = k / 32u;
  let s = word(row + p.k / 8u + block);
  return halves(words4(row + 4u * block), half(s), -half(s >> 16u));
}
fn quad(x: Piece, part: u32, q: u32) -> vec4<f32> { return bytes(word_of(x.low, x.high, q)); }
