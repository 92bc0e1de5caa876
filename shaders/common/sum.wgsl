// Fragment: sums and maxima over a workgroup of WG invocations, in a fixed tree: the same bits on every run.
// Every invocation must call these (they hold barriers) and gets the result. WG is a power of two.
var<workgroup> scratch: array<f32, WG>;

fn workgroup_sum(value: f32, lid: u32) -> f32 {
  workgroupBarrier();
  scratch[lid] = value;
  for (var half = WG / 2u; half > 0u; half = half / 2u) {
    workgroupBarrier();
    if (lid < half) { scratch[lid] = scratch[lid] + scratch[lid + half]; }
  }
  workgroupBarrier();
  return scratch[0];
}

fn workgroup_max(value: f32, lid: u32) -> f32 {
  workgroupBarrier();
  scratch[lid] = value;
  for (var half = WG / 2u; half > 0u; half = half / 2u) {
    workgroupBarrier();
    if (lid < half) { scratch[lid] = max(scratch[lid], scratch[lid + half]); }
  }
  workgroupBarrier();
  return scratch[0];
}
