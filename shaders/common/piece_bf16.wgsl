// Fragment: pieces of a weight stored as bf16. Needs piece, words4.
const PIECE: u32 = 8u;
const PARTS: u32 = 1u;
const SCALED: u32 = 0u;
fn piece(row: u32, k: u32) -> Piece { return plain_piece(words4(row + k / 2u)); }
fn quad(x: Piece, part: u32, q: u32) -> vec4<f32> {
  let v = select(x.low.xy, x.low.zw, q == 1u);
  return bitcast<vec4<f32>>(vec4<u32>(v.x << 16u, v.x & 0xffff0000u, v.y << 16u, v.y & 0xffff0000u));
}
