// Fragment: the larger of all (value, index) pairs of a workgroup, the lower index among equals.
// Every invocation must call it (it holds barriers) and gets the result. WG is a power of two.
struct Best { value: f32, index: u32 }
var<workgroup> best_value: array<f32, WG>;
var<workgroup> best_index: array<u32, WG>;

fn workgroup_best(mine: Best, lid: u32) -> Best {
  workgroupBarrier();
  best_value[lid] = mine.value;
  best_index[lid] = mine.index;
  for (var half = WG / 2u; half > 0u; half = half / 2u) {
    workgroupBarrier();
    if (lid < half) {
      let v = best_value[lid + half];
      let i = best_index[lid + half];
      if (v > best_value[lid] || (v == best_value[lid] && i < best_index[lid])) {
        best_value[lid] = v;
        best_index[lid] = i;
      }
    }
  }
  workgroupBarrier();
  return Best(best_value[0], best_index[0]);
}

// Makes what this workgroup wrote to storage visible to all of it.
fn workgroup_storage() { storageBarrier(); workgroupBarrier(); }
