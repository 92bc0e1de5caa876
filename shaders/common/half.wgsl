// Fragment: half(bits), the value of an f16 in the low 16 bits. Exact, subnormal scales included, which unpack2x16float
// may turn into zero.
fn half(bits: u32) -> f32 {
  let magnitude = bits & 0x7fffu;
  // Exponents are moved up by 224 and back by 112: infinities survive.
  let normal = bitcast<f32>((magnitude << 13u) + 0x70000000u) * 1.9259299443872359e-34;
  let value = select(normal, f32(magnitude) * 5.9604644775390625e-8, magnitude < 0x400u);
  return select(value, -value, (bits & 0x8000u) != 0u);
}
