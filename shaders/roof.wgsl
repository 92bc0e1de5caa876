// roof.wgsl - what the device can do at most: y = x for bandwidth, chains of fused multiply-adds for arithmetic
// Entries   : copy, fused
// Shapes    : x, y [4 N]; fused writes one value for each invocation
// Grid      : ceil(N / WG) folded to 2-D; one invocation = four elements (copy), or 8 chains of four lanes (fused)
// Prelude   : WG = 256
// Precision : exact (copy); the values of fused have no meaning, they only keep it from being left out
// Limits    : 2 bindings
// Cost      : copy 32N bytes (memory bound); fused 64 * steps * N flop (compute bound)
// CPU       : src/bench/roof/cpu.rs
struct Params { n: u32, steps: u32 }
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(WG)
fn copy(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i < p.n) { y[i] = x[i]; }
}

@compute @workgroup_size(WG)
fn fused(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i < p.n) {
    // Factors that no compiler knows; each chain is its own.
    let a = x[0];
    let b = x[1];
    var c0 = x[2];
    var c1 = c0 + a;
    var c2 = c1 + a;
    var c3 = c2 + a;
    var c4 = c3 + a;
    var c5 = c4 + a;
    var c6 = c5 + a;
    var c7 = c6 + a;
    for (var s = 0u; s < p.steps; s += 1u) {
      c0 = fma(c0, a, b);
      c1 = fma(c1, a, b);
      c2 = fma(c2, a, b);
      c3 = fma(c3, a, b);
      c4 = fma(c4, a, b);
      c5 = fma(c5, a, b);
      c6 = fma(c6, a, b);
      c7 = fma(c7, a, b);
    }
    y[i] = ((c0 + c1) + (c2 + c3)) + ((c4 + c5) + (c6 + c7));
  }
}
