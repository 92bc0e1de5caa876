// Fragment: the interface of words4.wgsl for any `at`.
fn words4(at: u32) -> vec4<u32> { return vec4<u32>(w[at], w[at + 1u], w[at + 2u], w[at + 3u]); }
fn word(at: u32) -> u32 { return w[at]; }
