// gather_rows.wgsl - y[i,d] = table[index[i],d];  backward: dtable[v,d] = sum over i with index[i] = v of dy[i,d]
// Entries   : forward, links (occurrences of a row, chained in order), backward (sums along the chains)
// Shapes    : table, dtable [V, D]  index [N]  y, dy [N, D]  next, head [N]        (row-major, contiguous)
// Grid      : forward, backward: one invocation = one element of [N, D]; links: one invocation = one position;
//             folded to 2-D
// Prelude   : WG = 256
// Precision : forward copies; backward sums in f32 in the order of positions
// Limits    : links: 4*WG B shared; 4 bindings; indices beyond the table are clamped to its last row
// Cost      : forward 8*N*D bytes; links N*N compares; backward N*D flop, 8*N*D bytes on a dtable that is zero before
// CPU       : src/ops/gather_rows.rs
struct Params { n: u32, d: u32, v: u32 }
@group(0) @binding(0) var<storage, read> table: array<f32>;
@group(0) @binding(1) var<storage, read> index: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@group(0) @binding(0) var<storage, read> index0: array<u32>;
@group(0) @binding(1) var<storage, read_write> next: array<u32>;
@group(0) @binding(2) var<storage, read_write> head: array<u32>;

@group(0) @binding(0) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read> chain: array<u32>;
@group(0) @binding(3) var<storage, read> first: array<u32>;
@group(0) @binding(4) var<storage, read_write> dtable: array<f32>;

var<workgroup> tile: array<u32, WG>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i < p.n * p.d) {
    let row = min(index[i / p.d], p.v - 1u);
    y[i] = table[row * p.d + i % p.d];
  }
}

// next[i]: the position after i with the same row, n if there is none; head[i]: 1 if no position before i has it.
@compute @workgroup_size(WG)
fn links(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  let mine = min(index0[min(i, p.n - 1u)], p.v - 1u);
  var after = p.n;
  var is_first = 1u;
  for (var start = 0u; start < p.n; start += WG) {
    workgroupBarrier();
    tile[l] = min(index0[min(start + l, p.n - 1u)], p.v - 1u);
    workgroupBarrier();
    let count = min(WG, p.n - start);
    for (var k = 0u; k < count; k++) {
      if (tile[k] == mine) {
        let j = start + k;
        if (j < i) { is_first = 0u; }
        if (j > i) { after = min(after, j); }
      }
    }
  }
  if (i < p.n) {
    next[i] = after;
    head[i] = is_first;
  }
}

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(w, g) * WG + l;
  if (i >= p.n * p.d) { return; }
  let column = i % p.d;
  var at = i / p.d;
  if (first[at] == 0u) { return; }
  let row = min(index[at], p.v - 1u);
  var sum = 0.0;
  while (at < p.n) {
    sum += dy[at * p.d + column];
    at = chain[at];
  }
  dtable[row * p.d + column] = sum;
}
