// embedding.wgsl - y[i,d] = W[index[i],d] of a frozen weight in any format, one shard of its rows at a time
// Entries   : forward
// Shapes    : W [rows of the shard, w_words] packed  index [N]  y [N, D]        (row-major, contiguous)
// Grid      : one invocation = one element of [N, D], folded to 2-D; rows of other shards are left alone
// Prelude   : WG = 256;  fragments load_<format>, half
// Precision : that of the format
// Limits    : 3 bindings; indices beyond the weight are clamped to its last row
// Cost      : 4*N*D bytes written, N packed rows read
// CPU       : src/ops/embedding.rs
struct Params { n: u32, d: u32, v: u32, first: u32, rows: u32, w_words: u32 }
@group(0) @binding(0) var<storage, read> w: array<u32>;
@group(0) @binding(1) var<storage, read> index: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = linear_group(wid, g) * WG + l;
  if (i >= p.n * p.d) { return; }
  let row = min(index[i / p.d], p.v - 1u);
  if (row >= p.first && row - p.first < p.rows) { y[i] = load_w(row - p.first, i % p.d); }
}
