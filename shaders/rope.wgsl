// rope.wgsl - rotates pairs of the first 2 * half values of each head by the angle of (position, pair); the rest passes
// Entries   : rotate: (a, b) -> (a c - s b, b c + s a); with sign = -1 by -angle
// Shapes    : x, y [N, H, D]  cos, sin [P, half]  position [N]        (row-major, contiguous)
// Grid      : ceil(N * H * (D - half) / WG) folded to 2-D; one invocation = one pair, or one value that passes
// Prelude   : WG = 256
// Pairs     : pair k is values k * apart and k * apart + within: apart, within = 1, half | 2, 1
// Precision : the tables hold cosines and sines computed in f64, rounded once: built-ins are not exact enough
// Limits    : 5 bindings; positions beyond the table are clamped to its last row
// Cost      : 3*N*H*D flop, 8*N*H*D bytes (memory bound)
// Source    : Su et al. 2021, arXiv:2104.09864        CPU: src/ops/rope/mod.rs
struct Params { units: u32, heads: u32, head_dim: u32, half_dim: u32, rows: u32, apart: u32, within: u32, sign: f32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> cosines: array<f32>;
@group(0) @binding(2) var<storage, read> sines: array<f32>;
@group(0) @binding(3) var<storage, read> position: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn rotate(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i >= p.units) { return; }
  let of_head = p.head_dim - p.half_dim;
  let head = i / of_head;
  let k = i % of_head;
  if (k >= p.half_dim) {
    let at = head * p.head_dim + p.half_dim + k;
    y[at] = x[at];
    return;
  }
  let angle = min(position[head / p.heads], p.rows - 1u) * p.half_dim + k;
  let c = cosines[angle];
  let s = p.sign * sines[angle];
  let first = head * p.head_dim + k * p.apart;
  let second = first + p.within;
  let a = x[first];
  let b = x[second];
  y[first] = fma(-s, b, a * c);
  y[second] = fma(s, a, b * c);
}
