// Fragment: the interface of sum.wgsl for kernels in which one invocation does the whole item (no barriers).
fn workgroup_sum(value: f32, lid: u32) -> f32 { return value; }
fn workgroup_max(value: f32, lid: u32) -> f32 { return value; }
