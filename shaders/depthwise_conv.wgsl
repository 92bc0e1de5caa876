// depthwise_conv.wgsl - y[b,u,v,c] = sum_ij x[b, s u + i - top, s v + j - left, c] w[i,j,c]  (depthwise)
//                       y[b,u,v,c,i,j] = x[b, c, s u + i - top, s v + j - left]              (patches)
// Entries   : depthwise, patches
// Shapes    : depthwise: x [B,h,w,D], w [k,k,D], y [B,ceil(h/s),ceil(w/s),D];
//             patches: x [B,D,h,w], y [B,ceil(h/s),ceil(w/s),D,k,k]; what lies outside of x is 0
// Grid      : ceil(N / WG) folded to 2-D; one invocation = one element of y
// Prelude   : WG = 256
// Precision : f32 sums of up to k k products, rows first
// Limits    : 3 bindings
// Cost      : 2 k k flop an element of y, 4 (|x| + |w| + |y|) bytes (memory bound)
// Source    : Howard et al. 2017, arXiv:1704.04861        CPU: src/ops/depthwise_conv/mod.rs
struct Params { n: u32, d: u32, height: u32, width: u32, rows: u32, columns: u32, k: u32, stride: u32, top: u32, left: u32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read_write> y1: array<f32>;

@compute @workgroup_size(WG)
fn depthwise(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let at = linear_group(group, g) * WG + l;
  if (at < p.n) {
    let c = at % p.d;
    let v = (at / p.d) % p.columns;
    let u = (at / p.d / p.columns) % p.rows;
    let b = at / p.d / p.columns / p.rows;
    var sum = 0.0;
    for (var i = 0u; i < p.k; i++) {
      // Above the first row the difference wraps to a large number.
      let row = u * p.stride + i - p.top;
      if (row < p.height) {
        for (var j = 0u; j < p.k; j++) {
          let column = v * p.stride + j - p.left;
          if (column < p.width) {
            sum = fma(w[(i * p.k + j) * p.d + c], x[((b * p.height + row) * p.width + column) * p.d + c], sum);
          }
        }
      }
    }
    y[at] = sum;
  }
}

@compute @workgroup_size(WG)
fn patches(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let at = linear_group(group, g) * WG + l;
  if (at < p.n) {
    let j = at % p.k;
    let i = (at / p.k) % p.k;
    let c = (at / (p.k * p.k)) % p.d;
    let place = at / (p.k * p.k * p.d);
    let v = place % p.columns;
    let u = (place / p.columns) % p.rows;
    let b = place / p.columns / p.rows;
    let row = u * p.stride + i - p.top;
    let column = v * p.stride + j - p.left;
    var value = 0.0;
    if (row < p.height && column < p.width) {
      value = x[((b * p.d + c) * p.height + row) * p.width + column];
    }
    y1[at] = value;
  }
}
