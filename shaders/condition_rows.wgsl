// condition_rows.wgsl - what the chosen factors of A say for every factor e of B, and its gradients
//   C[l,g,k,e] = a[l,I[l,g,k]] . w[l,e,s]      s = min(k, S-1): a slot of its own for every choice, or one for all
//   da[l,i]    = sum over the g, k with I[l,g,k] = i and over e of dC[l,g,k,e] w[l,e,s]
//   dw[l,e,s]  = sum over g and the k of slot s of dC[l,g,k,e] a[l,I[l,g,k]]
// Entries   : forward (one workgroup = one product), grad_a, grad_w (one invocation = one element)
// Shapes    : a, da [L*E, D]  w, dw [L*E*S, D]  idx [L, P, G, K], side 0  c, dc [L, G, K, E]
// Grid      : L*G*K*E workgroups (forward); ceil(elements / WG) (gradients), folded to 2-D
// Prelude   : WG = 64;  fragments grid, sum
// Precision : accumulates f32; forward: WG partial sums, then a tree
// Limits    : 4*WG B shared; 4 bindings
// Cost      : 2*L*G*K*E*D flop, 4*L*E*S*D bytes (memory bound: few instances choose)
// Source    : Shen et al. 2024 (ACL, long.38), conditional factor selection   CPU: src/ops/condition_rows.rs
struct Params { linears: u32, sides: u32, units: u32, k: u32, e: u32, slots: u32, d: u32 }
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> idx: array<u32>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;

@group(0) @binding(0) var<storage, read> dc: array<f32>;
@group(0) @binding(1) var<storage, read> other: array<f32>;
@group(0) @binding(3) var<storage, read_write> grad: array<f32>;

// Row of `a` that choice k of a unit took, counted over all linears.
fn chosen(l: u32, unit: u32, k: u32) -> u32 {
  return l * p.e + min(idx[(l * p.sides * p.units + unit) * p.k + k], p.e - 1u);
}

fn slot(k: u32) -> u32 { return min(k, p.slots - 1u); }

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let group = linear_group(wid, g);
  let item = min(group, p.linears * p.units * p.k * p.e - 1u);
  let e = item % p.e;
  let k = item / p.e % p.k;
  let unit = item / (p.e * p.k) % p.units;
  let l = item / (p.e * p.k * p.units);
  let row = chosen(l, unit, k) * p.d;
  let col = ((l * p.e + e) * p.slots + slot(k)) * p.d;
  var sum = 0.0;
  for (var i = lid; i < p.d; i += WG) { sum = fma(a[row + i], w[col + i], sum); }
  sum = workgroup_sum(sum, lid);
  if (lid == 0u && group == item) { c[item] = sum; }
}

@compute @workgroup_size(WG)
fn grad_a(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let item = linear_group(wid, g) * WG + lid;
  if (item >= p.linears * p.e * p.d) { return; }
  let row = item / p.d;
  let l = row / p.e;
  var sum = 0.0;
  for (var choice = 0u; choice < p.units * p.k; choice++) {
    let k = choice % p.k;
    if (chosen(l, choice / p.k, k) == row) {
      let first = (l * p.units * p.k + choice) * p.e;
      for (var e = 0u; e < p.e; e++) {
        sum = fma(dc[first + e], other[((l * p.e + e) * p.slots + slot(k)) * p.d + item % p.d], sum);
      }
    }
  }
  grad[item] = sum;
}

@compute @workgroup_size(WG)
fn grad_w(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let item = linear_group(wid, g) * WG + lid;
  if (item >= p.linears * p.e * p.slots * p.d) { return; }
  let row = item / p.d;
  let s = row % p.slots;
  let e = row / p.slots % p.e;
  let l = row / (p.slots * p.e);
  var sum = 0.0;
  for (var unit = 0u; unit < p.units; unit++) {
    for (var k = 0u; k < p.k; k++) {
      if (slot(k) == s) {
        sum = fma(dc[((l * p.units + unit) * p.k + k) * p.e + e], other[chosen(l, unit, k) * p.d + item % p.d], sum);
      }
    }
  }
  grad[item] = sum;
}
