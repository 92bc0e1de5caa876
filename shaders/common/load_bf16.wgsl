// Fragment: element i of a weight stored as bf16 in words `w` (rows start at a word).
fn load_w(i: u32) -> f32 { let v = w[i / 2u]; return bitcast<f32>(select(v << 16u, v & 0xffff0000u, i % 2u == 1u)); }
