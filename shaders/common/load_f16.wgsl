// Fragment: element i of a weight stored as f16 in words `w` (rows start at a word).
fn load_w(i: u32) -> f32 { let v = unpack2x16float(w[i / 2u]); return select(v.x, v.y, i % 2u == 1u); }
