// rope.wgsl - rotates the pairs (x[k], x[k + D/2]) of each head by the angle of (position, k)
// Entries   : rotate: y[k] = x[k] c - s x[k + D/2], y[k + D/2] = x[k + D/2] c + s x[k]; with sign = -1 by -angle
// Shapes    : x, y [N, H, D]  cos, sin [P, D/2]  position [N]        (row-major, contiguous)
// Grid      : ceil(N*H*D/2 / WG) folded to 2-D; one invocation = one pair
// Prelude   : WG = 256
// Precision : the tables hold cosines and sines computed in f64, rounded once: built-ins are not exact enough
// Limits    : 5 bindings; positions beyond the table are clamped to its last row
// Cost      : 3*N*H*D flop, 8*N*H*D bytes (memory bound)
// Source    : Su et al. 2021, arXiv:2104.09864, in the half-split layout of Llama        CPU: src/ops/rope.rs
struct Params { pairs: u32, heads: u32, half_dim: u32, rows: u32, sign: f32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> cosines: array<f32>;
@group(0) @binding(2) var<storage, read> sines: array<f32>;
@group(0) @binding(3) var<storage, read> position: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn rotate(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i >= p.pairs) { return; }
  let k = i % p.half_dim;
  let head = i / p.half_dim;
  let angle = min(position[head / p.heads], p.rows - 1u) * p.half_dim + k;
  let c = cosines[angle];
  let s = p.sign * sines[angle];
  let at = head * 2u * p.half_dim + k;
  let a = x[at];
  let b = x[at + p.half_dim];
  y[at] = fma(-s, b, a * c);
  y[at + p.half_dim] = fma(s, a, b * c);
}
