//! Sums into four rows at once: each value that is loaded serves all of them.

use super::{LANES, Set, add_rows};

/// `out[i] += sum_j c[j][i] rows[j]`, element by element, rows in order: the bits of [`add_rows`] on each of the four.
/// Every row is as long as those of `out`.
#[inline(always)]
pub(crate) fn add_rows_to_four<S: Set>(simd: S, out: [&mut [f32]; 4], c: &[[f32; 4]], rows: &[&[f32]]) {
    let [o0, o1, o2, o3] = out;
    let whole = o0.len() / LANES * LANES;
    let mut at = 0;
    // As many columns as leave registers for what is added to them.
    while S::MANY && at + 4 * LANES <= whole {
        add_columns::<S, 4>(simd, [o0, o1, o2, o3], c, rows, at);
        at += 4 * LANES;
    }
    while at < whole {
        add_columns::<S, 1>(simd, [o0, o1, o2, o3], c, rows, at);
        at += LANES;
    }
    if at == o0.len() {
        return;
    }
    for (i, out) in [o0, o1, o2, o3].into_iter().enumerate() {
        for (c, row) in c.iter().zip(rows) {
            add_rows(simd, &mut out[at..], &[c[i]], &[&row[at..]]);
        }
    }
}

/// The columns `at .. at + N * LANES` of it.
#[inline(always)]
fn add_columns<S: Set, const N: usize>(
    simd: S,
    out: [&mut [f32]; 4],
    c: &[[f32; 4]],
    rows: &[&[f32]],
    at: usize,
) {
    let parts = out.map(|out| &mut out[at..at + N * LANES].as_chunks_mut::<LANES>().0[..N]);
    let mut sums = [[simd.zeros(); N]; 4];
    for i in 0..4 {
        for q in 0..N {
            sums[i][q] = simd.load(&parts[i][q]);
        }
    }
    for (c, row) in c.iter().zip(rows) {
        let row = &row[at..at + N * LANES].as_chunks::<LANES>().0[..N];
        let mut x = [simd.zeros(); N];
        for q in 0..N {
            x[q] = simd.load(&row[q]);
        }
        for i in 0..4 {
            let c = simd.all(c[i]);
            for q in 0..N {
                sums[i][q] = simd.mul_add(c, x[q], sums[i][q]);
            }
        }
    }
    for i in 0..4 {
        for q in 0..N {
            simd.store(sums[i][q], &mut parts[i][q]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::vectorised;
    use super::*;
    use crate::rng::Stream;

    vectorised! {
        fn both(simd: _, four: &mut [f32], one: &mut [f32], c: &[[f32; 4]], rows: &[&[f32]]) {
            let n = four.len() / 4;
            for i in 0..4 {
                let c: Vec<f32> = c.iter().map(|c| c[i]).collect();
                add_rows(simd, &mut one[i * n..][..n], &c, rows);
            }
            let (low, high) = four.split_at_mut(2 * n);
            let (a, b) = low.split_at_mut(n);
            let (c_row, d) = high.split_at_mut(n);
            add_rows_to_four(simd, [a, b, c_row, d], c, rows);
        }
    }

    #[test]
    fn four_rows_get_the_bits_of_one() {
        for (n, k) in [(0, 1), (1, 1), (15, 3), (16, 4), (37, 9), (64, 16), (200, 21)] {
            let start = Stream::new(1).normal_vec(4 * n, 1.0);
            let c = Stream::new(2).normal_vec(4 * k, 1.0);
            let flat = Stream::new(3).normal_vec(n * k, 1.0);
            let rows: Vec<&[f32]> = (0..k).map(|j| &flat[j * n..][..n]).collect();
            let mut four = start.clone();
            let mut one = start.clone();
            both(&mut four, &mut one, c.as_chunks::<4>().0, &rows);
            assert_eq!(four, one, "{n} columns, {k} rows");
            for (i, got) in four.iter().enumerate() {
                let terms = (0..k).map(|j| c[4 * j + i / n] as f64 * rows[j][i % n] as f64);
                let want = start[i] as f64 + terms.sum::<f64>();
                assert!((*got as f64 - want).abs() < 1e-4, "{got} {want}");
            }
        }
    }
}
