// Fragment: cap * tanh(x / cap). The built-in tanh may be off by 2^-11, so it is made of exp: Cephes tanhf, 3e-7.
fn tanh_of(x: f32) -> f32 {
  let z = x * x;
  let near = fma(fma(fma(fma(fma(-5.7049887e-3, z, 2.0639088e-2), z, -5.3739716e-2), z, 0.13331442), z, -0.3333328) * z, x, x);
  let e = exp(-2.0 * abs(x));
  let far = 1.0 - 2.0 * e / (1.0 + e);
  return select(select(-far, far, x >= 0.0), near, abs(x) < 0.625);
}

fn softcap(x: f32, cap: f32) -> f32 { return cap * tanh_of(x / cap); }
