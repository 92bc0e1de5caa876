// Fragment: element i of a weight stored as f32 in words `w` (rows start at a word).
fn load_w(i: u32) -> f32 { return bitcast<f32>(w[i]); }
