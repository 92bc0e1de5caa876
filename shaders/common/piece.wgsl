// Fragment: PIECE neighbouring weights of a row as they are stored, in PARTS of one scale each, and quad(piece, part, q), four
// of a part without their scale; part and q are constants. A weight is scale * value - minimum.
struct Piece { low: vec4<u32>, high: vec4<u32>, low_bits: vec4<u32>, high_bits: vec4<u32>, scale: vec2<f32>, minimum: vec2<f32> }

fn plain_piece(words: vec4<u32>) -> Piece { return scaled_piece(words, vec4<u32>(0u), 1.0, 0.0); }

fn scaled_piece(low: vec4<u32>, high: vec4<u32>, scale: f32, minimum: f32) -> Piece {
  return Piece(low, high, vec4<u32>(0u), vec4<u32>(0u), vec2<f32>(scale), vec2<f32>(minimum));
}

// Word q of eight.
fn word_of(low: vec4<u32>, high: vec4<u32>, q: u32) -> u32 {
  if (q >= 4u) { return high[q % 4u]; }
  return low[q % 4u];
}

fn bytes(word: u32) -> vec4<f32> { return vec4<f32>(unpack4xU8(word)); }

// Bit i of `bits` becomes bit 4 of byte i, for four bits.
fn spread(bits: u32) -> u32 { return ((bits & 15u) * 0x204081u & 0x01010101u) << 4u; }

// The four low halves of each byte, then the four high ones.
fn halves(x: vec4<u32>, scale: f32, minimum: f32) -> Piece {
  let mask = vec4<u32>(0x0f0f0f0fu);
  return scaled_piece(x & mask, (x >> vec4<u32>(4u)) & mask, scale, minimum);
}

// A piece of 32 with bit i of `bits` as bit 4 of its value i.
fn fifth_bits(x: Piece, bits: u32) -> Piece {
  let low = vec4<u32>(spread(bits), spread(bits >> 4u), spread(bits >> 8u), spread(bits >> 12u));
  let high = vec4<u32>(spread(bits >> 16u), spread(bits >> 20u), spread(bits >> 24u), spread(bits >> 28u));
  return scaled_piece(x.low | low, x.high | high, x.scale.x, x.minimum.x);
}

// Scales and minimums of groups g and g + 1 of 32, g even, in the header of a block of q4_k and q5_k: 6 bits each. Four of
// both are in a word, the rest is split between the third word and the upper bits.
fn group_scales(header: vec4<u32>, g: u32) -> mat2x2<f32> {
  let s = header.yzw >> vec3<u32>(8u * (g % 4u));
  let first = vec4<u32>(s.x, s.x >> 8u, s.y, s.y >> 8u);
  let low = vec4<u32>(s.z, s.z >> 8u, s.z >> 4u, s.z >> 12u) & vec4<u32>(15u);
  let all = vec4<f32>(select(first & vec4<u32>(63u), low | ((first >> vec4<u32>(2u)) & vec4<u32>(48u)), g >= 4u));
  return mat2x2<f32>(half(header.x) * all.xy, half(header.x >> 16u) * all.zw);
}
