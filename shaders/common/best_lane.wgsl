// Fragment: the interface of best.wgsl for kernels in which one invocation does the whole item (no barriers).
struct Best { value: f32, index: u32 }
fn workgroup_best(mine: Best, lid: u32) -> Best { return mine; }
fn workgroup_storage() {}
