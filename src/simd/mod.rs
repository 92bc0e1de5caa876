//! Vector code by the instructions that the processor has: the same loops, compiled once for each set.
//!
//! Binaries run on any processor of their architecture; which loop is called is decided at run time. Outside of
//! x86-64 the instructions of the target are used.

mod four;
mod set;

use std::ops::Range;

pub(crate) use self::four::add_rows_to_four;
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
            // SAFETY: there is a token of these instructions, so that the processor has them.
            Level::Avx512(_) => return unsafe { avx512(f) },
            // SAFETY: as above.
            Level::Avx2(_) => return unsafe { avx2(f) },
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
pub(crate) fn mul_add<S: Set>(_: S, a: f32, b: f32, c: f32) -> f32 {
    if S::FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `y += sum_j c[j] rows[j]`, element by element, rows in order. Every row is as long as `y`.
#[inline(always)]
pub(crate) fn add_rows<S: Set>(simd: S, y: &mut [f32], c: &[f32], rows: &[&[f32]]) {
    let (c8, c) = c.as_chunks::<8>();
    let (r8, r) = rows.as_chunks::<8>();
    for (c, r) in c8.iter().zip(r8) {
        add_some(simd, y, *c, *r);
    }
    let (c4, c1) = c.as_chunks::<4>();
    let (r4, r1) = r.as_chunks::<4>();
    for (c, r) in c4.iter().zip(r4) {
        add_some(simd, y, *c, *r);
    }
    for (c, r) in c1.iter().zip(r1) {
        add_some(simd, y, [*c], [r]);
    }
}

#[inline(always)]
fn add_some<S: Set, const N: usize>(simd: S, y: &mut [f32], c: [f32; N], rows: [&[f32]; N]) {
    let (ys, y_tail) = y.as_chunks_mut::<LANES>();
    let all = c.map(|v| simd.all(v));
    let parts = rows.map(|r| &r.as_chunks::<LANES>().0[..ys.len()]);
    let whole = ys.len() * LANES;
    for (i, y) in ys.iter_mut().enumerate() {
        let mut sum = simd.load(y);
        for j in 0..N {
            sum = simd.mul_add(all[j], simd.load(&parts[j][i]), sum);
        }
        simd.store(sum, y);
    }
    for (i, y) in y_tail.iter_mut().enumerate() {
        for j in 0..N {
            *y = mul_add(simd, c[j], rows[j][whole + i], *y);
        }
    }
}

/// `out[j] = x . rows[j]`, each in a fixed order: sixteen running sums, then their tree.
#[inline(always)]
pub(crate) fn dots<S: Set>(simd: S, out: &mut [f32], x: &[f32], rows: &[&[f32]]) {
    let (o4, o1) = out.as_chunks_mut::<4>();
    let (r4, r1) = rows.as_chunks::<4>();
    for (o, r) in o4.iter_mut().zip(r4) {
        *o = four_dots(simd, x, *r);
    }
    for (o, r) in o1.iter_mut().zip(r1) {
        *o = dot(simd, x, r);
    }
}

/// `put(i, j, left[i] . right[j])` for all pairs of rows of one length, each in a fixed order. `right` is read once.
// No closure computes: one that is not inlined would be compiled without the processor's instructions.
#[inline(always)]
pub(crate) fn all_dots<S: Set>(
    simd: S,
    left: &[&[f32]],
    right: &[&[f32]],
    mut put: impl FnMut(usize, usize, f32),
) {
    let (l4, l1) = left.as_chunks::<4>();
    // Four rows at a time where their sums fit the registers.
    let (r4, r1) = if S::MANY { right.as_chunks::<4>() } else { (&[][..], right) };
    let last = 4 * l4.len();
    for (j, r) in r4.iter().enumerate() {
        for (i, l) in l4.iter().enumerate() {
            let sums = sixteen_dots(simd, *r, *l);
            for q in 0..16 {
                put(4 * i + q % 4, 4 * j + q / 4, sums[q / 4][q % 4]);
            }
        }
        for (i, l) in l1.iter().enumerate() {
            for (q, r) in r.iter().enumerate() {
                put(last + i, 4 * j + q, dot(simd, l, r));
            }
        }
    }
    for (j, r) in (4 * r4.len()..).zip(r1) {
        for (i, l) in l4.iter().enumerate() {
            let sums = four_dots(simd, r, *l);
            for (q, sum) in sums.into_iter().enumerate() {
                put(4 * i + q, j, sum);
            }
        }
        for (i, l) in l1.iter().enumerate() {
            put(last + i, j, dot(simd, l, r));
        }
    }
}

/// Inner products of four rows with four others, summed as [`four_dots`] does: each value is loaded once for four of them.
#[inline(always)]
fn sixteen_dots<S: Set>(simd: S, x: [&[f32]; 4], rows: [&[f32]; 4]) -> [[f32; 4]; 4] {
    let n = x[0].len() / LANES;
    let xs = x.map(|x| &x.as_chunks::<LANES>().0[..n]);
    let ys = rows.map(|row| &row.as_chunks::<LANES>().0[..n]);
    let mut sums = [[simd.zeros(); 4]; 4];
    for c in 0..n {
        let mut y = [simd.zeros(); 4];
        for j in 0..4 {
            y[j] = simd.load(&ys[j][c]);
        }
        for i in 0..4 {
            let x = simd.load(&xs[i][c]);
            for j in 0..4 {
                sums[i][j] = simd.mul_add(x, y[j], sums[i][j]);
            }
        }
    }
    let mut out = [[0f32; 4]; 4];
    for i in 0..4 {
        for j in 0..4 {
            out[i][j] = total(simd, sums[i][j], &x[i][n * LANES..], &rows[j][n * LANES..]);
        }
    }
    out
}

/// The sum of the lanes and of what is left.
#[inline(always)]
fn total<S: Set>(simd: S, lanes: S::Lanes, x: &[f32], row: &[f32]) -> f32 {
    if x.is_empty() {
        return simd.sum(lanes);
    }
    let mut sums = [0f32; LANES];
    simd.store(lanes, &mut sums);
    for (l, (x, r)) in x.iter().zip(row).enumerate() {
        sums[l] = mul_add(simd, *x, *r, sums[l]);
    }
    simd.sum(simd.load(&sums))
}

/// The sum of running sums: halves upon halves.
#[inline(always)]
pub(crate) fn tree(sums: [f32; LANES]) -> f32 {
    Target.sum(sums)
}

/// Inner product of two rows of one length, in a fixed order.
#[inline(always)]
pub(crate) fn dot<S: Set>(simd: S, x: &[f32], row: &[f32]) -> f32 {
    // Four chains of additions, as each waits for its last one.
    const CHAINS: usize = 4;
    let (xs, x) = x.as_chunks::<{ CHAINS * LANES }>();
    let (rs, r) = row.as_chunks::<{ CHAINS * LANES }>();
    let mut p = simd.zeros();
    let mut q = simd.zeros();
    let mut s = simd.zeros();
    let mut t = simd.zeros();
    for (x, r) in xs.iter().zip(rs) {
        let (x, _) = x.as_chunks::<LANES>();
        let (r, _) = r.as_chunks::<LANES>();
        p = simd.mul_add(simd.load(&x[0]), simd.load(&r[0]), p);
        q = simd.mul_add(simd.load(&x[1]), simd.load(&r[1]), q);
        s = simd.mul_add(simd.load(&x[2]), simd.load(&r[2]), s);
        t = simd.mul_add(simd.load(&x[3]), simd.load(&r[3]), t);
    }
    let (xs, x) = x.as_chunks::<LANES>();
    let (rs, r) = r.as_chunks::<LANES>();
    for (x, r) in xs.iter().zip(rs) {
        p = simd.mul_add(simd.load(x), simd.load(r), p);
    }
    total(simd, simd.add(simd.add(p, q), simd.add(s, t)), x, r)
}

#[inline(always)]
fn four_dots<S: Set>(simd: S, x: &[f32], rows: [&[f32]; 4]) -> [f32; 4] {
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let [a, b, c, d] = rows.map(|r| r.as_chunks::<LANES>());
    let mut p = simd.zeros();
    let mut q = simd.zeros();
    let mut r = simd.zeros();
    let mut s = simd.zeros();
    for ((((x, a), b), c), d) in xs.iter().zip(a.0).zip(b.0).zip(c.0).zip(d.0) {
        let x = simd.load(x);
        p = simd.mul_add(x, simd.load(a), p);
        q = simd.mul_add(x, simd.load(b), q);
        r = simd.mul_add(x, simd.load(c), r);
        s = simd.mul_add(x, simd.load(d), s);
    }
    [
        total(simd, p, x_tail, a.1),
        total(simd, q, x_tail, b.1),
        total(simd, r, x_tail, c.1),
        total(simd, s, x_tail, d.1),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    vectorised! {
        fn both(simd: _, y: &mut [f32], c: &[f32], x: &[f32], rows: &[&[f32]], out: &mut [f32]) {
            add_rows(simd, y, c, rows);
            dots(simd, out, x, rows);
        }
    }

    #[test]
    fn sums_of_rows_and_inner_products() {
        for (n, k) in [(0, 1), (1, 1), (15, 3), (16, 4), (37, 9), (100, 6)] {
            let draw = |name: &str, n| Stream::new(1).named(name).normal_vec(n, 1.0);
            let x = draw("x", n);
            let c = draw("c", k);
            let flat = draw("rows", n * k);
            let rows: Vec<&[f32]> = (0..k).map(|j| &flat[j * n..][..n]).collect();
            let mut y = x.clone();
            let mut out = vec![f32::NAN; k];
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
        fn pairs(simd: _, left: &[&[f32]], right: &[&[f32]], out: &mut [f32]) {
            all_dots(simd, left, right, |i, j, sum| out[i * right.len() + j] += sum);
        }
    }

    #[test]
    fn every_pair_has_its_inner_product_once() {
        for (m, n, k) in [(1, 1, 3), (4, 4, 16), (5, 9, 37), (3, 8, 0), (8, 2, 100), (9, 7, 200)] {
            let left = Stream::new(3).normal_vec(m * k, 1.0);
            let right = Stream::new(4).normal_vec(n * k, 1.0);
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

    /// The loop of [`vectorised_loop`], one value at a time: what is looked at by `black_box` cannot be a vector.
    #[inline(never)]
    fn scalar_loop(values: &mut [f32]) {
        for v in values {
            *v = std::hint::black_box(std::hint::black_box(*v) * 1.000_1 + 0.5).max(0.25).sqrt();
        }
    }

    #[inline(never)]
    fn vectorised_loop(values: &mut [f32]) {
        wide(|| values.iter_mut().for_each(|v| *v = (*v * 1.000_1 + 0.5).max(0.25).sqrt()));
    }

    /// A closure that is not inlined is compiled without vectors, and nothing else would tell. The best of many
    /// interleaved rounds is compared, which other work on the machine does not reach.
    #[test]
    fn wide_loops_are_vectors() {
        if cfg!(debug_assertions) {
            return;
        }
        let mut values = vec![1.0f32; 4096];
        let mut best = [std::time::Duration::MAX; 2];
        for _ in 0..300 {
            for (best, run) in best.iter_mut().zip([scalar_loop as fn(&mut [f32]), vectorised_loop]) {
                let started = std::time::Instant::now();
                run(std::hint::black_box(&mut values));
                *best = started.elapsed().min(*best);
            }
        }
        let [scalar, vectors] = best;
        assert!(2 * vectors <= scalar, "{vectors:?} in vectors, {scalar:?} one by one");
    }

    #[test]
    fn wide_calls_compute_the_same_bits() {
        let v = Stream::new(2).normal_vec(1000, 1.0);
        let f = |v: &[f32]| v.iter().map(|v| v * 1.7 + 0.3).collect::<Vec<_>>();
        assert_eq!(wide(|| f(&v)), f(&v));
    }
}
