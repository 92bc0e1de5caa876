// Fragment: pieces of a weight stored as q8_0; layout as in load_q8_0. Needs piece, words4, half.
const PIECE: u32 = 32u;
const PARTS: u32 = 1u;
const SCALED: u32 = 1u;
fn piece(row: u32, k: u32) -> Piece {
  let at = row + k / 4u;
  let block = k / 32u;
  let d = half(word(row + p.k / 4u + block / 2u) >> (16u * (block % 2u)));
  return scaled_piece(words4(at), words4(at + 4u), d, 0.0);
}
fn quad(x: Piece, part: u32, q: u32) -> vec4<f32> { return vec4<f32>(unpack4xI8(word_of(x.low, x.high, q))); }
