// Fragment: key(bits), an integer that grows with an f32 value, and before(key_a, a, key_b, b): the order from large to
// small of values at positions a and b, in which the lowest position comes first among equals.
// Grows with the value; 0 for NaN; +0 and -0 are equal.
fn key(bits: u32) -> u32 {
  if ((bits & 0x7fffffffu) > 0x7f800000u) { return 0u; }
  if ((bits & 0x7fffffffu) == 0u) { return 0x80000000u; }
  return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

fn before(key_a: u32, a: u32, key_b: u32, b: u32) -> bool {
  return key_a > key_b || (key_a == key_b && a < b);
}
