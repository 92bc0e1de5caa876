//! Vector code by the instructions that the processor has: the same loops, compiled once for each set.
//!
//! Binaries run on any processor of their architecture; which loop is called is decided at run time. Outside of
//! x86-64 the instructions of the target are used.

mod set;

use std::ops::Range;

pub(crate) use self::set::{LANES, Set, Target, vectorised};
#[cfg(target_arch = "x86_64")]
pub(crate) use self::set::{
    Level, level,
    x86::{Avx2, Avx512},
};

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

/// Says that a range of values will be read soon; what lies outside of them is left out.
#[inline(always)]
pub(crate) fn prefetch(values: &[f32], range: Range<usize>) {
    #[cfg(target_arch = "x86_64")]
    for line in values.get(range).unwrap_or_default().chunks(LANES) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, and the address is that of a value.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, range);
}

/// `a b + c`, in one rounding where that is an instruction.
#[inline(always)]
pub(crate) fn mul_add<S: Set>(a: f32, b: f32, c: f32) -> f32 {
    if S::FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `y += sum_j c[j] rows[j]`, element by element, rows in order. Every row is as long as `y`.
#[inline(always)]
pub(crate) fn add_rows<S: Set>(y: &mut [f32], c: &[f32], rows: &[&[f32]]) {
    let ((c8, c), (r8, r)) = (c.as_chunks::<8>(), rows.as_chunks::<8>());
    for (c, r) in c8.iter().zip(r8) {
        add_some::<S, 8>(y, *c, *r);
    }
    let ((c4, c1), (r4, r1)) = (c.as_chunks::<4>(), r.as_chunks::<4>());
    for (c, r) in c4.iter().zip(r4) {
        add_some::<S, 4>(y, *c, *r);
    }
    for (c, r) in c1.iter().zip(r1) {
        add_some::<S, 1>(y, [*c], [r]);
    }
}

#[inline(always)]
fn add_some<S: Set, const N: usize>(y: &mut [f32], c: [f32; N], rows: [&[f32]; N]) {
    let (ys, y_tail) = y.as_chunks_mut::<LANES>();
    let all = c.map(S::all);
    let parts = rows.map(|r| &r.as_chunks::<LANES>().0[..ys.len()]);
    let whole = ys.len() * LANES;
    for (i, y) in ys.iter_mut().enumerate() {
        let mut sum = S::load(y);
        for j in 0..N {
            sum = S::mul_add(all[j], S::load(&parts[j][i]), sum);
        }
        S::store(sum, y);
    }
    for (i, y) in y_tail.iter_mut().enumerate() {
        for j in 0..N {
            *y = mul_add::<S>(c[j], rows[j][whole + i], *y);
        }
    }
}

/// `out[j] = x . rows[j]`, each in a fixed order: sixteen running sums, then their tree.
#[inline(always)]
pub(crate) fn dots<S: Set>(out: &mut [f32], x: &[f32], rows: &[&[f32]]) {
    let ((o4, o1), (r4, r1)) = (out.as_chunks_mut::<4>(), rows.as_chunks::<4>());
    for (o, r) in o4.iter_mut().zip(r4) {
        *o = four_dots::<S>(x, *r);
    }
    for (o, r) in o1.iter_mut().zip(r1) {
        *o = dot::<S>(x, r);
    }
}

/// `put(i, j, left[i] . right[j])` for all pairs of rows of one length, each in a fixed order. `right` is read once.
// No closure computes: one that is not inlined would be compiled without the processor's instructions.
#[inline(always)]
pub(crate) fn all_dots<S: Set>(left: &[&[f32]], right: &[&[f32]], mut put: impl FnMut(usize, usize, f32)) {
    let (l4, l1) = left.as_chunks::<4>();
    // Two rows at a time where their sums fit the registers.
    let (r2, r1) = if S::MANY { right.as_chunks::<2>() } else { (&[][..], right) };
    let last = 4 * l4.len();
    for (j, r) in r2.iter().enumerate() {
        for (i, l) in l4.iter().enumerate() {
            let sums = eight_dots::<S>(*r, *l);
            for q in 0..8 {
                put(4 * i + q % 4, 2 * j + q / 4, sums[q / 4][q % 4]);
            }
        }
        for (i, l) in l1.iter().enumerate() {
            for (q, r) in r.iter().enumerate() {
                put(last + i, 2 * j + q, dot::<S>(l, r));
            }
        }
    }
    for (j, r) in (2 * r2.len()..).zip(r1) {
        for (i, l) in l4.iter().enumerate() {
            let sums = four_dots::<S>(r, *l);
            for (q, sum) in sums.into_iter().enumerate() {
                put(4 * i + q, j, sum);
            }
        }
        for (i, l) in l1.iter().enumerate() {
            put(last + i, j, dot::<S>(l, r));
        }
    }
}

/// Inner products of two rows with four others, summed as [`four_dots`] does: each value is loaded once for all of them.
#[inline(always)]
fn eight_dots<S: Set>(x: [&[f32]; 2], rows: [&[f32]; 4]) -> [[f32; 4]; 2] {
    let [(xs, x_tail), (ys, y_tail)] = x.map(|v| v.as_chunks::<LANES>());
    let [a, b, c, d] = rows.map(|r| r.as_chunks::<LANES>());
    // Names, not arrays: an array would be kept in memory.
    let (mut p, mut q, mut r, mut s) = (S::zeros(), S::zeros(), S::zeros(), S::zeros());
    let (mut t, mut u, mut v, mut w) = (S::zeros(), S::zeros(), S::zeros(), S::zeros());
    for (((((x, y), a), b), c), d) in xs.iter().zip(ys).zip(a.0).zip(b.0).zip(c.0).zip(d.0) {
        let (x, y) = (S::load(x), S::load(y));
        let (a, b, c, d) = (S::load(a), S::load(b), S::load(c), S::load(d));
        (p, t) = (S::mul_add(x, a, p), S::mul_add(y, a, t));
        (q, u) = (S::mul_add(x, b, q), S::mul_add(y, b, u));
        (r, v) = (S::mul_add(x, c, r), S::mul_add(y, c, v));
        (s, w) = (S::mul_add(x, d, s), S::mul_add(y, d, w));
    }
    let of_x = [
        total::<S>(p, x_tail, a.1),
        total::<S>(q, x_tail, b.1),
        total::<S>(r, x_tail, c.1),
        total::<S>(s, x_tail, d.1),
    ];
    let of_y = [
        total::<S>(t, y_tail, a.1),
        total::<S>(u, y_tail, b.1),
        total::<S>(v, y_tail, c.1),
        total::<S>(w, y_tail, d.1),
    ];
    [of_x, of_y]
}

/// The sum of the lanes and of what is left.
#[inline(always)]
fn total<S: Set>(lanes: S::Lanes, x: &[f32], row: &[f32]) -> f32 {
    if x.is_empty() {
        return S::sum(lanes);
    }
    let mut sums = [0f32; LANES];
    S::store(lanes, &mut sums);
    for (l, (x, r)) in x.iter().zip(row).enumerate() {
        sums[l] = mul_add::<S>(*x, *r, sums[l]);
    }
    S::sum(S::load(&sums))
}

/// The sum of running sums: halves upon halves.
#[inline(always)]
pub(crate) fn tree(sums: [f32; LANES]) -> f32 {
    Target::sum(sums)
}

/// Inner product of two rows of one length, in a fixed order.
#[inline(always)]
pub(crate) fn dot<S: Set>(x: &[f32], row: &[f32]) -> f32 {
    // Four chains of additions, as each waits for its last one.
    const CHAINS: usize = 4;
    let ((xs, x), (rs, r)) = (x.as_chunks::<{ CHAINS * LANES }>(), row.as_chunks::<{ CHAINS * LANES }>());
    let (mut p, mut q, mut s, mut t) = (S::zeros(), S::zeros(), S::zeros(), S::zeros());
    for (x, r) in xs.iter().zip(rs) {
        let ((x, _), (r, _)) = (x.as_chunks::<LANES>(), r.as_chunks::<LANES>());
        p = S::mul_add(S::load(&x[0]), S::load(&r[0]), p);
        q = S::mul_add(S::load(&x[1]), S::load(&r[1]), q);
        s = S::mul_add(S::load(&x[2]), S::load(&r[2]), s);
        t = S::mul_add(S::load(&x[3]), S::load(&r[3]), t);
    }
    let ((xs, x), (rs, r)) = (x.as_chunks::<LANES>(), r.as_chunks::<LANES>());
    for (x, r) in xs.iter().zip(rs) {
        p = S::mul_add(S::load(x), S::load(r), p);
    }
    total::<S>(S::add(S::add(p, q), S::add(s, t)), x, r)
}

#[inline(always)]
fn four_dots<S: Set>(x: &[f32], rows: [&[f32]; 4]) -> [f32; 4] {
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let [a, b, c, d] = rows.map(|r| r.as_chunks::<LANES>());
    let (mut p, mut q, mut r, mut s) = (S::zeros(), S::zeros(), S::zeros(), S::zeros());
    for ((((x, a), b), c), d) in xs.iter().zip(a.0).zip(b.0).zip(c.0).zip(d.0) {
        let x = S::load(x);
        p = S::mul_add(x, S::load(a), p);
        q = S::mul_add(x, S::load(b), q);
        r = S::mul_add(x, S::load(c), r);
        s = S::mul_add(x, S::load(d), s);
    }
    [
        total::<S>(p, x_tail, a.1),
        total::<S>(q, x_tail, b.1),
        total::<S>(r, x_tail, c.1),
        total::<S>(s, x_tail, d.1),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    vectorised! {
        fn both(y: &mut [f32], c: &[f32], x: &[f32], rows: &[&[f32]], out: &mut [f32]) {
            add_rows::<Simd>(y, c, rows);
            dots::<Simd>(out, x, rows);
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
            all_dots::<Simd>(left, right, |i, j, sum| out[i * right.len() + j] += sum);
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
