// dropout.wgsl - y[i] = scale * x[i] where u[i] >= rate, else 0;  u[i] = random_uniform(key, i)
// Entries   : forward (its own derivative, on dy)
// Shapes    : x, y [N]
// Grid      : ceil(N / 2 / WG) folded to 2-D; one invocation = two elements = one block of random bits
// Prelude   : WG = 256
// Precision : the mask has the same bits on every device; one rounding
// Limits    : 2 bindings
// Cost      : 60*N integer operations, 8*N bytes (memory bound on most GPUs)
// Source    : Srivastava et al. 2014, JMLR 15; bits: shaders/common/random.wgsl        CPU: src/ops/dropout.rs
struct Params { n: u32, key0: u32, key1: u32, rate: f32, scale: f32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

fn keep(v: f32, bits: u32) -> f32 {
  return select(0.0, p.scale * v, f32(bits >> 8u) * (1.0 / 16777216.0) >= p.rate);
}

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let block = linear_group(w, g) * WG + l;
  // 2 * block may not fit when N is near 2^32.
  if (block >= (p.n >> 1u) + (p.n & 1u)) { return; }
  let i = 2u * block;
  let bits = threefry2x32(vec2<u32>(p.key0, p.key1), vec2<u32>(block, 0u));
  y[i] = keep(x[i], bits.x);
  if (p.n - i > 1u) { y[i + 1u] = keep(x[i + 1u], bits.y); }
}
