// Fragment: pieces of a weight stored as q6_k; layout as in load_q6_k. Needs piece, words4, half.
const PIECE: u32 = 16u;
const PARTS: u32 = 1u;
const SCALED: u32 = 1u;
fn piece(row: u32, k: u32) -> Piece {
  let block = k / 256u;
  let at = row + block * 52u;
  let part = k / 128u % 2u;
  let quarter = k / 32u % 4u;
  let within = k / 16u % 2u * 4u;
  let low = (words4(at + part * 16u + quarter % 2u * 8u + within) >> vec4<u32>(4u * (quarter / 2u))) & vec4<u32>(0x0f0f0f0fu);
  let high = (words4(at + 32u + part * 8u + within) >> vec4<u32>(2u * quarter)) & vec4<u32>(0x03030303u);
  let e = k / 16u % 16u;
  let scale = f32(bitcast<i32>(word(at + 48u + e / 4u) << (24u - 8u * (e % 4u))) >> 24u);
  let d = half(word(row + p.k / 256u * 52u + block / 2u) >> (16u * (block % 2u))) * scale;
  return scaled_piece(low | (high << vec4<u32>(4u)), vec4<u32>(0u), d, 32.0 * d);
}
fn quad(x: Piece, part: u32, q: u32) -> vec4<f32> { return bytes(word_of(x.low, x.high, q)); }
