// routing_load.wgsl - load[l,e] = sum over units g and choices k with idx[l,0,g,k] = e of weight[g];
//                     bias[l,e] += rate * sign(mean_e(load) - load[l,e])
// Entries   : count, balance
// Shapes    : idx [L, P, G, K]  weight [G]  load, bias [L, E]
// Grid      : one invocation = one (linear, factor); folded to 2-D
// Prelude   : WG = 64; WEIGHTED = 0 | 1;  fragment grid
// Precision : accumulates f32 in unit order
// Limits    : 3 bindings
// Cost      : count: L*E*G*K compares; balance: L*E*E flop
// CPU       : src/ops/routing_load.rs
struct Params { linears: u32, sides: u32, units: u32, k: u32, e: u32, rate: f32 }
@group(0) @binding(0) var<storage, read> idx: array<u32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> load_out: array<f32>;
@group(0) @binding(0) var<storage, read> load_in: array<f32>;
@group(0) @binding(1) var<storage, read_write> bias: array<f32>;

@compute @workgroup_size(WG)
fn count(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i >= p.linears * p.e) { return; }
  let base = i / p.e * p.sides * p.units * p.k;
  var sum = 0.0;
  for (var j = 0u; j < p.units * p.k; j++) {
    if (idx[base + j] == i % p.e) {
      if (WEIGHTED == 1u) { sum += weight[j / p.k]; } else { sum += 1.0; }
    }
  }
  load_out[i] = sum;
}

@compute @workgroup_size(WG)
fn balance(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i >= p.linears * p.e) { return; }
  let base = i / p.e * p.e;
  var sum = 0.0;
  for (var j = 0u; j < p.e; j++) { sum += load_in[base + j]; }
  bias[i] = fma(p.rate, sign(sum / f32(p.e) - load_in[i]), bias[i]);
}
