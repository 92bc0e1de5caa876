// Fragment: pieces of a weight stored as q5_0; layout as in load_q5_0. Needs piece, words4, half.
const PIECE: u32 = 32u;
const PARTS: u32 = 1u;
const SCALED: u32 = 1u;
fn piece(row: u32, k: u32) -> Piece {
  let block = k / 32u;
  let blocks = p.k / 32u;
  let d = half(word(row + 5u * blocks + block / 2u) >> (16u * (block % 2u)));
  return fifth_bits(halves(words4(row + 4u * block), d, 16.0 * d), word(row + 4u * blocks + block));
}
fn quad(x: Piece, part: u32, q: u32) -> vec4<f32> { return bytes(word_of(x.low, x.high, q)); }
