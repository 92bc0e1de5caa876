// Fragment: a4(at, left), four values of the first operand from `at` on, a multiple of 4. Declares binding 0.
@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
fn a4(at: u32, left: u32) -> vec4<f32> { return a[at / 4u]; }
