//! Vector code by the instructions that the processor has: the same loops, compiled once for each set.
//!
//! Binaries run on any processor of their architecture; which loop is called is decided at run time. Outside of
//! x86-64 the instructions of the target are used.

/// Declares a function whose body is compiled for AVX-512, for AVX2 with FMA, and for the target's own instructions.
/// In the body, `FMA` says whether fused multiply-adds are instructions: see [`mul_add`].
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) {
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")]
                fn widest($($arg: $ty),*) {
                    body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn wide($($arg: $ty),*) {
                    body::<true>($($arg),*)
                }
                match $crate::simd::level() {
                    // SAFETY: the level says that the processor has these instructions.
                    $crate::simd::Level::Avx512 => return unsafe { widest($($arg),*) },
                    $crate::simd::Level::Avx2 => return unsafe { wide($($arg),*) },
                    $crate::simd::Level::Target => {}
                }
            }
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use vectorised;

/// Sets of instructions, from the narrowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) enum Level {
    Target,
    Avx2,
    Avx512,
}

/// What this processor has.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn level() -> Level {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma") && has!("f16c")) {
        return Level::Target;
    }
    match has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq") {
        true => Level::Avx512,
        false => Level::Avx2,
    }
}

/// Calls `f`, compiled for the widest instructions there are. `f` must be small enough to be inlined. Nothing is
/// contracted: the bits are the same on every processor.
#[inline]
pub(crate) fn wide<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")]
        fn avx512<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        match level() {
            // SAFETY: the level says that the processor has these instructions.
            Level::Avx512 => return unsafe { avx512(f) },
            Level::Avx2 => return unsafe { avx2(f) },
            Level::Target => {}
        }
    }
    f()
}

/// `a b + c`, in one rounding where that is an instruction.
#[inline(always)]
pub(crate) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Running sums of a reduction.
pub(crate) const LANES: usize = 16;

/// `y += sum_j c[j] rows[j]`, element by element, rows in order. Every row is as long as `y`.
#[inline(always)]
pub(crate) fn add_rows<const FMA: bool>(y: &mut [f32], c: &[f32], rows: &[&[f32]]) {
    let ((c4, c1), (r4, r1)) = (c.as_chunks::<4>(), rows.as_chunks::<4>());
    for (c, r) in c4.iter().zip(r4) {
        add_some::<FMA, 4>(y, *c, *r);
    }
    for (c, r) in c1.iter().zip(r1) {
        add_some::<FMA, 1>(y, [*c], [r]);
    }
}

#[inline(always)]
fn add_some<const FMA: bool, const N: usize>(y: &mut [f32], c: [f32; N], rows: [&[f32]; N]) {
    let n = y.len();
    let rows = rows.map(|r| &r[..n]);
    for (i, y) in y.iter_mut().enumerate() {
        let mut sum = *y;
        for j in 0..N {
            sum = mul_add::<FMA>(c[j], rows[j][i], sum);
        }
        *y = sum;
    }
}

/// `out[j] = x . rows[j]`, each in a fixed order: sixteen running sums, then their tree.
#[inline(always)]
pub(crate) fn dots<const FMA: bool>(out: &mut [f32], x: &[f32], rows: &[&[f32]]) {
    let ((o4, o1), (r4, r1)) = (out.as_chunks_mut::<4>(), rows.as_chunks::<4>());
    for (o, r) in o4.iter_mut().zip(r4) {
        *o = four_dots::<FMA>(x, *r);
    }
    for (o, r) in o1.iter_mut().zip(r1) {
        *o = dot::<FMA>(x, r);
    }
}

/// `put(i, j, left[i] . right[j])` for all pairs of rows of one length, each in a fixed order. `right` is read once.
// No closure computes: one that is not inlined would be compiled without the processor's instructions.
#[inline(always)]
pub(crate) fn all_dots<const FMA: bool>(
    left: &[&[f32]],
    right: &[&[f32]],
    mut put: impl FnMut(usize, usize, f32),
) {
    let ((l4, l1), (r2, r1)) = (left.as_chunks::<4>(), right.as_chunks::<2>());
    let last = 4 * l4.len();
    for (j, r) in r2.iter().enumerate() {
        for (i, l) in l4.iter().enumerate() {
            let sums = eight_dots::<FMA>(*r, *l);
            for q in 0..8 {
                put(4 * i + q % 4, 2 * j + q / 4, sums[q / 4][q % 4]);
            }
        }
        for (i, l) in l1.iter().enumerate() {
            for (q, r) in r.iter().enumerate() {
                put(last + i, 2 * j + q, dot::<FMA>(l, r));
            }
        }
    }
    for r in r1 {
        let j = right.len() - 1;
        for (i, l) in l4.iter().enumerate() {
            let sums = four_dots::<FMA>(r, *l);
            for (q, sum) in sums.into_iter().enumerate() {
                put(4 * i + q, j, sum);
            }
        }
        for (i, l) in l1.iter().enumerate() {
            put(last + i, j, dot::<FMA>(l, r));
        }
    }
}

/// Inner products of two rows with four others, summed as [`four_dots`] does: each value is loaded once for all of them.
#[inline(always)]
fn eight_dots<const FMA: bool>(x: [&[f32]; 2], rows: [&[f32]; 4]) -> [[f32; 4]; 2] {
    let [(xs, x_tail), (ys, y_tail)] = x.map(|v| v.as_chunks::<LANES>());
    let [a, b, c, d] = rows.map(|r| r.as_chunks::<LANES>());
    // Eight names, not an array: an array would be kept in memory.
    let (mut p, mut q, mut r, mut s) = ([0f32; LANES], [0f32; LANES], [0f32; LANES], [0f32; LANES]);
    let (mut t, mut u, mut v, mut w) = ([0f32; LANES], [0f32; LANES], [0f32; LANES], [0f32; LANES]);
    for (((((x, y), a), b), c), d) in xs.iter().zip(ys).zip(a.0).zip(b.0).zip(c.0).zip(d.0) {
        (p, t) = (more::<FMA>(p, x, a), more::<FMA>(t, y, a));
        (q, u) = (more::<FMA>(q, x, b), more::<FMA>(u, y, b));
        (r, v) = (more::<FMA>(r, x, c), more::<FMA>(v, y, c));
        (s, w) = (more::<FMA>(s, x, d), more::<FMA>(w, y, d));
    }
    let of_x = [
        total::<FMA>(p, x_tail, a.1),
        total::<FMA>(q, x_tail, b.1),
        total::<FMA>(r, x_tail, c.1),
        total::<FMA>(s, x_tail, d.1),
    ];
    let of_y = [
        total::<FMA>(t, y_tail, a.1),
        total::<FMA>(u, y_tail, b.1),
        total::<FMA>(v, y_tail, c.1),
        total::<FMA>(w, y_tail, d.1),
    ];
    [of_x, of_y]
}

pub(crate) type Lanes = [f32; LANES];

#[inline(always)]
fn more<const FMA: bool>(acc: Lanes, x: &Lanes, row: &Lanes) -> Lanes {
    let mut out = acc;
    for l in 0..LANES {
        out[l] = mul_add::<FMA>(x[l], row[l], out[l]);
    }
    out
}

/// The sum of the lanes and of what is left.
#[inline(always)]
fn total<const FMA: bool>(mut acc: Lanes, x: &[f32], row: &[f32]) -> f32 {
    for (l, (x, r)) in x.iter().zip(row).enumerate() {
        acc[l] = mul_add::<FMA>(*x, *r, acc[l]);
    }
    tree(acc)
}

/// The sum of the lanes: halves upon halves.
#[inline(always)]
pub(crate) fn tree(mut acc: Lanes) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            acc[l] += acc[l + half];
        }
        half /= 2;
    }
    acc[0]
}

/// Inner product of two rows of one length, in a fixed order.
#[inline(always)]
pub(crate) fn dot<const FMA: bool>(x: &[f32], row: &[f32]) -> f32 {
    // Four chains of additions, as each waits for its last one.
    const CHAINS: usize = 4;
    let ((xs, x), (rs, r)) = (x.as_chunks::<{ CHAINS * LANES }>(), row.as_chunks::<{ CHAINS * LANES }>());
    let mut acc = [[0f32; LANES]; CHAINS];
    for (x, r) in xs.iter().zip(rs) {
        for (c, acc) in acc.iter_mut().enumerate() {
            for (l, acc) in acc.iter_mut().enumerate() {
                *acc = mul_add::<FMA>(x[c * LANES + l], r[c * LANES + l], *acc);
            }
        }
    }
    let ((xs, x), (rs, r)) = (x.as_chunks::<LANES>(), r.as_chunks::<LANES>());
    for (x, r) in xs.iter().zip(rs) {
        acc[0] = more::<FMA>(acc[0], x, r);
    }
    let mut all = acc[0];
    for l in 0..LANES {
        all[l] = (acc[0][l] + acc[1][l]) + (acc[2][l] + acc[3][l]);
    }
    total::<FMA>(all, x, r)
}

#[inline(always)]
fn four_dots<const FMA: bool>(x: &[f32], rows: [&[f32]; 4]) -> [f32; 4] {
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let [a, b, c, d] = rows.map(|r| r.as_chunks::<LANES>());
    let (mut p, mut q, mut r, mut s) = ([0f32; LANES], [0f32; LANES], [0f32; LANES], [0f32; LANES]);
    for ((((x, a), b), c), d) in xs.iter().zip(a.0).zip(b.0).zip(c.0).zip(d.0) {
        p = more::<FMA>(p, x, a);
        q = more::<FMA>(q, x, b);
        r = more::<FMA>(r, x, c);
        s = more::<FMA>(s, x, d);
    }
    [
        total::<FMA>(p, x_tail, a.1),
        total::<FMA>(q, x_tail, b.1),
        total::<FMA>(r, x_tail, c.1),
        total::<FMA>(s, x_tail, d.1),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    vectorised! {
        fn both(y: &mut [f32], c: &[f32], x: &[f32], rows: &[&[f32]], out: &mut [f32]) {
            add_rows::<FMA>(y, c, rows);
            dots::<FMA>(out, x, rows);
        }
    }

    #[test]
    fn sums_of_rows_and_inner_products() {
        for (n, k) in [(0, 1), (1, 1), (15, 3), (16, 4), (37, 9), (100, 6)] {
            let draw = |name: &str, n| Stream::new(1).named(name).normal_vec(n, 1.0);
            let (x, c, flat) = (draw("x", n), draw("c", k), draw("rows", n * k));
            let rows: Vec<&[f32]> = (0..k).map(|j| &flat[j * n..][..n]).collect();
            let (mut y, mut out) = (x.clone(), vec![f32::NAN; k]);
            both(&mut y, &c, &x, &rows, &mut out);
            for i in 0..n {
                let want: f64 = x[i] as f64 + (0..k).map(|j| c[j] as f64 * rows[j][i] as f64).sum::<f64>();
                assert!((y[i] as f64 - want).abs() < 1e-5 * (1.0 + want.abs()));
            }
            for j in 0..k {
                let want: f64 = x.iter().zip(rows[j]).map(|(a, b)| *a as f64 * *b as f64).sum();
                assert!((out[j] as f64 - want).abs() < 1e-4);
            }
        }
    }

    vectorised! {
        fn pairs(left: &[&[f32]], right: &[&[f32]], out: &mut [f32]) {
            all_dots::<FMA>(left, right, |i, j, sum| out[i * right.len() + j] += sum);
        }
    }

    #[test]
    fn every_pair_has_its_inner_product_once() {
        for (m, n, k) in [(1, 1, 3), (4, 4, 16), (5, 9, 37), (3, 8, 0), (8, 2, 100)] {
            let (left, right) =
                (Stream::new(3).normal_vec(m * k, 1.0), Stream::new(4).normal_vec(n * k, 1.0));
            let l: Vec<&[f32]> = (0..m).map(|i| &left[i * k..][..k]).collect();
            let r: Vec<&[f32]> = (0..n).map(|j| &right[j * k..][..k]).collect();
            let mut out = vec![0f32; m * n];
            pairs(&l, &r, &mut out);
            for (q, got) in out.iter().enumerate() {
                let want: f64 = l[q / n].iter().zip(r[q % n]).map(|(a, b)| *a as f64 * *b as f64).sum();
                assert!((*got as f64 - want).abs() < 1e-4, "{m} {n} {k}: {q}");
            }
        }
    }

    #[test]
    fn wide_calls_compute_the_same_bits() {
        let v = Stream::new(2).normal_vec(1000, 1.0);
        let f = |v: &[f32]| v.iter().map(|v| v * 1.7 + 0.3).collect::<Vec<_>>();
        assert_eq!(wide(|| f(&v)), f(&v));
    }
}
