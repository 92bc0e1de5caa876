// Fragment: Threefry-2x32-20, the same bits as src/rng.rs.
fn rotate_left(v: u32, r: u32) -> u32 { return (v << r) | (v >> (32u - r)); }

fn threefry2x32(key: vec2<u32>, counter: vec2<u32>) -> vec2<u32> {
  let k2 = 0x1BD11BDAu ^ key.x ^ key.y;
  var x = counter + key;
  x.x += x.y; x.y = rotate_left(x.y, 13u) ^ x.x;  x.x += x.y; x.y = rotate_left(x.y, 15u) ^ x.x;
  x.x += x.y; x.y = rotate_left(x.y, 26u) ^ x.x;  x.x += x.y; x.y = rotate_left(x.y, 6u) ^ x.x;
  x.x += key.y; x.y += k2 + 1u;
  x.x += x.y; x.y = rotate_left(x.y, 17u) ^ x.x;  x.x += x.y; x.y = rotate_left(x.y, 29u) ^ x.x;
  x.x += x.y; x.y = rotate_left(x.y, 16u) ^ x.x;  x.x += x.y; x.y = rotate_left(x.y, 24u) ^ x.x;
  x.x += k2; x.y += key.x + 2u;
  x.x += x.y; x.y = rotate_left(x.y, 13u) ^ x.x;  x.x += x.y; x.y = rotate_left(x.y, 15u) ^ x.x;
  x.x += x.y; x.y = rotate_left(x.y, 26u) ^ x.x;  x.x += x.y; x.y = rotate_left(x.y, 6u) ^ x.x;
  x.x += key.x; x.y += key.y + 3u;
  x.x += x.y; x.y = rotate_left(x.y, 17u) ^ x.x;  x.x += x.y; x.y = rotate_left(x.y, 29u) ^ x.x;
  x.x += x.y; x.y = rotate_left(x.y, 16u) ^ x.x;  x.x += x.y; x.y = rotate_left(x.y, 24u) ^ x.x;
  x.x += key.y; x.y += k2 + 4u;
  x.x += x.y; x.y = rotate_left(x.y, 13u) ^ x.x;  x.x += x.y; x.y = rotate_left(x.y, 15u) ^ x.x;
  x.x += x.y; x.y = rotate_left(x.y, 26u) ^ x.x;  x.x += x.y; x.y = rotate_left(x.y, 6u) ^ x.x;
  x.x += k2; x.y += key.x + 5u;
  return x;
}

// Uniform in [0, 1) with 24 bits, value `index` of the stream `key`.
fn random_uniform(key: vec2<u32>, index: u32) -> f32 {
  let block = threefry2x32(key, vec2<u32>(index / 2u, 0u));
  return f32(select(block.x, block.y, index % 2u == 1u) >> 8u) * (1.0 / 16777216.0);
}

// Values index .. index + 4 of the stream, index even: each block of bits is drawn once.
fn random_uniform4(key: vec2<u32>, index: u32) -> vec4<f32> {
  let at = index / 2u;
  let bits = vec4<u32>(threefry2x32(key, vec2<u32>(at, 0u)), threefry2x32(key, vec2<u32>(at + 1u, 0u)));
  return vec4<f32>(bits >> vec4<u32>(8u)) * (1.0 / 16777216.0);
}
