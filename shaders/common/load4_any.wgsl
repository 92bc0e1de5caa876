// Fragment: load_w4(row, col) by single values, for rows of any length: zero beyond the end. Needs load_w, TB.
fn load_w4(row: u32, col: u32) -> vec4<f32> {
  let last = select(p.n, p.k, TB == 1u) - 1u;
  let at = vec4<u32>(col, col + 1u, col + 2u, col + 3u);
  let i = min(at, vec4<u32>(last));
  let v = vec4<f32>(load_w(row, i.x), load_w(row, i.y), load_w(row, i.z), load_w(row, i.w));
  return select(vec4<f32>(0.0), v, at <= vec4<u32>(last));
}
