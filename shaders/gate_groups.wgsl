// gate_groups.wgsl - y[m,j] = u[m,j] g[m,j/r];  dots[m,e] = sum over j of group e of u[m,j] v[m,j]
// Entries   : gate, dots
// Shapes    : u, v, y [M, N]  g, dots [M, N/r]        (row-major, contiguous)
// Grid      : one invocation = one element of the output, folded to 2-D
// Prelude   : WG = 256
// Precision : dots sums in f32 in the order of columns
// Limits    : 3 bindings; neighbouring invocations of dots read r apart, which is meant for groups as small as a rank
// Cost      : gate M*N flop, 4*(2*M*N + M*N/r) bytes; dots 2*M*N flop, as many bytes (memory bound)
// CPU       : src/ops/gate_groups.rs
struct Params { n: u32, width: u32 }
@group(0) @binding(0) var<storage, read> u: array<f32>;
@group(0) @binding(1) var<storage, read> g: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> v: array<f32>;

// Groups are whole in a row, so that they are numbered through: element i of u belongs to group i / width.
@compute @workgroup_size(WG)
fn gate(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(wid, groups) * WG + l;
  if (i < p.n) { y[i] = u[i] * g[i / p.width]; }
}

@compute @workgroup_size(WG)
fn dots(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(wid, groups) * WG + l;
  if (i < p.n) {
    var sum = 0.0;
    for (var k = i * p.width; k < (i + 1u) * p.width; k++) { sum = fma(u[k], v[k], sum); }
    y[i] = sum;
  }
}
