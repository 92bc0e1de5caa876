// Fragment: dropout of the adapter branch; needs random.wgsl, DROP (0 or 1) and in Params key0, key1, drop_p, keep.
fn drop_factor(index: u32) -> f32 {
  if (DROP == 0u) { return 1.0; }
  return select(p.keep, 0.0, random_uniform(vec2<u32>(p.key0, p.key1), index) < p.drop_p);
}

// The factors of four neighbours, the first of them even.
fn drop_factor4(index: u32) -> vec4<f32> {
  if (DROP == 0u) { return vec4<f32>(1.0); }
  let kept = random_uniform4(vec2<u32>(p.key0, p.key1), index) >= vec4<f32>(p.drop_p);
  return select(vec4<f32>(0.0), vec4<f32>(p.keep), kept);
}

// The same wherever they start.
fn drop_factor4_any(index: u32) -> vec4<f32> {
  let even = drop_factor4(index & ~1u);
  if (DROP == 1u && index % 2u == 1u) { return vec4<f32>(even.yzw, drop_factor(index + 3u)); }
  return even;
}
