// Fragment: pieces of a weight stored as q5_1; layout as in load_q5_1. Needs piece, words4, half.
const PIECE: u32 = 32u;
const PARTS: u32 = 1u;
const SCALED: u32 = 1u;
fn piece(row: u32, k: u32) -> Piece {
  let block = k / 32u;
  let blocks = p.k / 32u;
  let s = word(row + 5u * blocks + block);
  return fifth_bits(halves(words4(row + 4u * block), half(s), -half(s >> 16u)), word(row + 4u * blocks + block));
}
fn quad(x: Piece, part: u32, q: u32) -> vec4<f32> { return bytes(word_of(x.low, x.high, q)); }
