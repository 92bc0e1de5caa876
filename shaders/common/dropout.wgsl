// Fragment: dropout of the adapter branch; needs random.wgsl, DROP (0 or 1) and in Params key0, key1, drop_p, keep.
fn drop_factor(index: u32) -> f32 {
  if (DROP == 0u) { return 1.0; }
  return select(p.keep, 0.0, random_uniform(vec2<u32>(p.key0, p.key1), index) < p.drop_p);
}
