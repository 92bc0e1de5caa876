// Fragment: load_w4(row, col), four values of a weight stored as f32; rows are whole vectors. Declares binding 1.
@group(0) @binding(1) var<storage, read> w4: array<vec4<f32>>;
fn load_w4(row: u32, col: u32) -> vec4<f32> { return w4[(row * p.w_words + col) / 4u]; }
