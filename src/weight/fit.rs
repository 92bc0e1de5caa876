//! Scales of the parts of a K block: those with the least squared error of all that a search over rounded quants finds.

/// Relative to the number of quants, how far the search goes to either side of the scale that just spans the values.
const REACH: f32 = 1.0;
/// Its steps to either side.
const STEPS: i32 = 10;

/// `x = scale q - offset`; the offset is not negative.
#[derive(Clone, Copy)]
pub(super) struct Fitted {
    pub scale: f32,
    pub offset: f32,
}

/// The nearest whole number, for sizes below 2^22; the even one of two.
#[inline(always)]
pub(super) fn round(v: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (v + SHIFT) - SHIFT
}

/// Sums over `j` of `q[j]`, `q[j]^2` and `q[j] x[j]`, in a fixed order.
#[inline(always)]
pub(super) fn sums<const N: usize>(x: &[f32; N], quant: impl Fn(usize) -> f32) -> [f32; 3] {
    let mut lanes = [[0f32; 8]; 3];
    for (part, x) in x.as_chunks::<8>().0.iter().enumerate() {
        for i in 0..8 {
            let q = quant(8 * part + i);
            lanes[0][i] += q;
            lanes[1][i] += q * q;
            lanes[2][i] += q * x[i];
        }
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// Least squares of `x = scale q - offset` for quants in `0 ..= top`.
#[inline(always)]
pub(super) fn fit_offset(x: &[f32; 32], top: f32) -> Fitted {
    let low = x.iter().copied().fold(0f32, f32::min);
    let high = x.iter().copied().fold(low, f32::max);
    let [.., total, squares] = {
        let [total, squares, _] = sums(x, |j| x[j]);
        [total, squares]
    };
    let mut best = Fitted { scale: 0.0, offset: -low };
    if high == low {
        return best;
    }
    let mut least = f32::INFINITY;
    let mut attempt = |inverse: f32, offset: f32| {
        let [q, qq, qx] = sums(x, |j| round((x[j] + offset) * inverse).clamp(0.0, top));
        let fitted = solve(q, qq, qx, total);
        let Fitted { scale: s, offset: m } = fitted;
        let error = squares + s * s * qq + 32.0 * m * m - 2.0 * s * qx + 2.0 * m * total - 2.0 * s * m * q;
        if error < least {
            least = error;
            best = fitted;
        }
    };
    for step in -STEPS..=STEPS {
        attempt((top + REACH * step as f32 / STEPS as f32) / (high - low), -low);
    }
    best
}

/// The scale and the offset for sums over quants.
#[inline(always)]
fn solve(q: f32, qq: f32, qx: f32, total: f32) -> Fitted {
    let determinant = 32.0 * qq - q * q;
    let scale = (32.0 * qx - q * total) / determinant;
    let offset = (scale * q - total) / 32.0;
    if determinant > 0.0 && offset >= 0.0 {
        return Fitted { scale, offset };
    }
    Fitted { scale: if qq > 0.0 { qx / qq } else { 0.0 }, offset: 0.0 }
}

/// Least squares of `x = scale q` for quants in `-top .. top`; the scale has either sign.
#[inline(always)]
pub(super) fn fit_signed(x: &[f32; 16], top: f32) -> f32 {
    let size = x.iter().fold(0f32, |size, v| size.max(v.abs()));
    if size == 0.0 {
        return 0.0;
    }
    let largest = x.iter().copied().find(|v| v.abs() == size).unwrap_or(size);
    let mut best = 0.0;
    let mut most = 0.0;
    for step in -STEPS..=STEPS {
        let inverse = -(top + REACH * step as f32 / STEPS as f32) / largest;
        let [_, qq, qx] = sums(x, |j| round(x[j] * inverse).clamp(-top, top - 1.0));
        // What the fit takes from the squared error.
        if qq > 0.0 && qx * qx > most * qq {
            most = qx * qx / qq;
            best = qx / qq;
        }
    }
    best
}
