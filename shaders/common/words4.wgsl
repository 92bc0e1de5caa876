// Fragment: words4(at), four words of the second operand from `at` on, a multiple of 4, and word(at). Declares binding 1.
@group(0) @binding(1) var<storage, read> quads: array<vec4<u32>>;
fn words4(at: u32) -> vec4<u32> { return quads[at / 4u]; }
fn word(at: u32) -> u32 {
  let v = quads[at / 4u];
  let pair = select(v.xy, v.zw, (at & 2u) != 0u);
  return select(pair.x, pair.y, (at & 1u) != 0u);
}
