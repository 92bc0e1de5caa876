// Fragment: the interface of read4.wgsl for rows of any length: the first `left` values, then zeros.
@group(0) @binding(0) var<storage, read> a: array<f32>;
fn a4(at: u32, left: u32) -> vec4<f32> {
  let i = vec4<u32>(at) + min(vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(left - 1u));
  return select(vec4<f32>(0.0), vec4<f32>(a[i.x], a[i.y], a[i.z], a[i.w]), vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}
