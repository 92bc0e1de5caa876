// Fragment: pieces of a weight stored as f32. Needs piece, words4.
const PIECE: u32 = 4u;
const PARTS: u32 = 1u;
const SCALED: u32 = 0u;
fn piece(row: u32, k: u32) -> Piece { return plain_piece(words4(row + k)); }
fn quad(x: Piece, part: u32, q: u32) -> vec4<f32> { return bitcast<vec4<f32>>(x.low); }
