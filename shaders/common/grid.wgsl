// Fragment: the index of a workgroup in a grid that the host folded to two dimensions.
fn linear_group(wid: vec3<u32>, groups: vec3<u32>) -> u32 {
  return wid.y * groups.x + wid.x;
}
