//! Points in the plane for instances with given distances: exact t-SNE.

use crate::Stream;
use rayon::prelude::*;

/// Neighbours that a point has, in effect; fewer where there are few points.
const PERPLEXITY: f64 = 30.0;
const STEPS: usize = 750;
/// Steps with attraction raised by the factor behind, and less momentum.
const EARLY: usize = 250;
const EXAGGERATION: f64 = 12.0;
/// Standard deviation of the start along its longer axis.
const START: f64 = 1e-4;

/// Points in the plane for `n` instances by their squared distances `[n, n]`, row by row: t-SNE (van der Maaten and Hinton
/// 2008) with all pairs, from the first two principal components as a start. Nothing is drawn: the same distances give the
/// same points.
///
/// With `p_{j|i}` proportional to `exp(-b_i d_ij^2)` and b_i such that the entropy of `p_{.|i}` is ln(perplexity), 30 or (n - 1) / 3
/// where that is less; `p_ij = (p_{j|i} + p_{i|j}) / 2n`; and `q_ij` proportional to `1 / (1 + |y_i - y_j|^2)`, the points y
/// minimise `sum_ij p_ij ln(p_ij / q_ij)`. Distances between far clusters and their sizes have no meaning in the plane.
///
/// # Panics
/// There are not n x n distances.
///
/// ```
/// use mixlora::analyse::embedding;
/// // Two pairs of equal instances.
/// let near = |i: usize, j: usize| if i / 2 == j / 2 { 0.0 } else { 1.0 };
/// let squares: Vec<f64> = (0..16).map(|at| near(at / 4, at % 4)).collect();
/// let points = embedding(&squares, 4);
/// let apart = |a: usize, b: usize| (points[a][0] - points[b][0]).hypot(points[a][1] - points[b][1]);
/// assert!(apart(0, 1) < 0.1 * apart(0, 2) && apart(2, 3) < 0.1 * apart(0, 2));
/// ```
pub fn embedding(squares: &[f64], n: usize) -> Vec<[f64; 2]> {
    assert_eq!(squares.len(), n * n, "squared distances of {n} instances");
    if n < 2 {
        return vec![[0.0; 2]; n];
    }
    let mut points = principal(squares, n);
    if points.iter().all(|point| *point == [0.0; 2]) {
        return points;
    }
    let affinities = affinities(squares, n);
    let rate = (n as f64 / EXAGGERATION / 4.0).max(50.0);
    let mut speed = vec![[0.0f64; 2]; n];
    let mut gains = vec![[1.0f64; 2]; n];
    for step in 0..STEPS {
        let early = step < EARLY;
        let slope = slope(&affinities, &points, if early { EXAGGERATION } else { 1.0 });
        let momentum = if early { 0.5 } else { 0.8 };
        for i in 0..n {
            for axis in 0..2 {
                let slope = slope[i][axis];
                let turned = slope * speed[i][axis] > 0.0;
                let gain = if turned { gains[i][axis] * 0.8 } else { gains[i][axis] + 0.2 };
                gains[i][axis] = gain.max(0.01);
                speed[i][axis] = momentum * speed[i][axis] - rate * gains[i][axis] * slope;
                points[i][axis] += speed[i][axis];
            }
        }
    }
    centred(points)
}

/// The points around their mean.
fn centred(mut points: Vec<[f64; 2]>) -> Vec<[f64; 2]> {
    let n = points.len() as f64;
    for axis in 0..2 {
        let mean = points.iter().map(|point| point[axis]).sum::<f64>() / n;
        points.iter_mut().for_each(|point| point[axis] -= mean);
    }
    points
}

/// The gradient of the divergence by point: `4 sum_j (p_ij - q_ij) w_ij (y_i - y_j)`, w = 1 / (1 + |y_i - y_j|^2).
fn slope(affinities: &[f64], points: &[[f64; 2]], raised: f64) -> Vec<[f64; 2]> {
    let n = points.len();
    let weight = |i: usize, j: usize| {
        let x = points[i][0] - points[j][0];
        let y = points[i][1] - points[j][1];
        1.0 / (1.0 + x * x + y * y)
    };
    let others = |i: usize| (0..n).filter(move |j| *j != i);
    let row = |i: usize| others(i).map(|j| weight(i, j)).sum::<f64>();
    let rows: Vec<f64> = (0..n).into_par_iter().map(row).collect();
    let whole = rows.iter().sum::<f64>();
    let of_point = |i: usize| {
        let mut sum = [0.0; 2];
        for j in others(i) {
            let w = weight(i, j);
            let pull = 4.0 * (raised * affinities[i * n + j] - w / whole) * w;
            sum[0] += pull * (points[i][0] - points[j][0]);
            sum[1] += pull * (points[i][1] - points[j][1]);
        }
        sum
    };
    (0..n).into_par_iter().map(of_point).collect()
}

/// `p_ij` of all pairs.
fn affinities(squares: &[f64], n: usize) -> Vec<f64> {
    let perplexity = PERPLEXITY.min((n as f64 - 1.0) / 3.0).max(1.0);
    let row = |i: usize| neighbours(&squares[i * n..][..n], i, perplexity.ln());
    let rows: Vec<Vec<f64>> = (0..n).into_par_iter().map(row).collect();
    let both = |at: usize| (rows[at / n][at % n] + rows[at % n][at / n]) / (2 * n) as f64;
    (0..n * n).map(both).collect()
}

/// `p_{j|i}` of one i, with a given entropy, by bisection.
fn neighbours(squares: &[f64], i: usize, entropy: f64) -> Vec<f64> {
    let others = || (0..squares.len()).filter(|j| *j != i);
    let nearest = others().map(|j| squares[j]).fold(f64::MAX, f64::min);
    let mut low = 0.0;
    let mut high = f64::INFINITY;
    let mut b = 1.0;
    let mut shares = vec![0.0; squares.len()];
    for _ in 0..64 {
        others().for_each(|j| shares[j] = (-b * (squares[j] - nearest)).exp());
        let whole = shares.iter().sum::<f64>();
        shares.iter_mut().for_each(|share| *share /= whole);
        let now = -shares.iter().filter(|s| **s > 0.0).map(|s| s * s.ln()).sum::<f64>();
        if now > entropy {
            low = b;
            b = if high.is_finite() { (low + high) / 2.0 } else { b * 2.0 };
        } else {
            high = b;
            b = (low + high) / 2.0;
        }
    }
    shares
}

/// The first two principal components, scaled to a small deviation: those of the doubly centred squares
/// `-(d_ij^2 - mean_i - mean_j + mean) / 2`, by power iteration. Zeros where all instances are equal.
fn principal(squares: &[f64], n: usize) -> Vec<[f64; 2]> {
    let mean = |row: &[f64]| row.iter().sum::<f64>() / n as f64;
    let means: Vec<f64> = squares.chunks(n).map(mean).collect();
    let all = mean(&means);
    let cell = |at: usize| -(squares[at] - means[at / n] - means[at % n] + all) / 2.0;
    let mut products: Vec<f64> = (0..n * n).map(cell).collect();
    let mut points = vec![[0.0; 2]; n];
    let mut scale = 0.0;
    for axis in 0..2 {
        let (vector, value) = leading(&products, n, axis as u64);
        if axis == 0 {
            // The deviation of the first component is sqrt(value / n).
            scale = if value > 1e-9 { START / (value / n as f64).sqrt() } else { 0.0 };
        }
        let length = value.max(0.0).sqrt();
        points.iter_mut().zip(&vector).for_each(|(point, v)| point[axis] = v * length * scale);
        for (at, product) in products.iter_mut().enumerate() {
            *product -= value * vector[at / n] * vector[at % n];
        }
    }
    points
}

/// The leading eigenvector of a symmetric matrix and its value; its largest component is positive.
fn leading(matrix: &[f64], n: usize, seed: u64) -> (Vec<f64>, f64) {
    let mut vector: Vec<f64> = Stream::new(seed).normal_vec(n, 1.0).into_iter().map(f64::from).collect();
    let mut value = 0.0;
    for _ in 0..200 {
        let row = |row: &[f64]| row.iter().zip(&vector).map(|(m, v)| m * v).sum::<f64>();
        let next: Vec<f64> = matrix.par_chunks(n).map(row).collect();
        value = next.iter().map(|v| v * v).sum::<f64>().sqrt();
        if value < 1e-12 {
            return (vec![0.0; n], 0.0);
        }
        vector = next.into_iter().map(|v| v / value).collect();
    }
    let largest = vector.iter().fold(0.0f64, |most, v| if v.abs() > most.abs() { *v } else { most });
    vector.iter_mut().for_each(|v| *v *= largest.signum());
    (vector, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Squared distances of indicator vectors in three clusters of different codes, with a bit of each flipped.
    fn clusters(each: usize) -> Vec<f64> {
        let vector = |at: usize| -> Vec<f64> {
            let mut v: Vec<f64> = (0..30).map(|f| f64::from(u8::from(f / 10 == at / each))).collect();
            v[at % 30] = 1.0 - v[at % 30];
            v
        };
        let n = 3 * each;
        let square =
            |at: usize| vector(at / n).iter().zip(vector(at % n)).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        (0..n * n).map(square).collect()
    }

    fn distance(a: [f64; 2], b: [f64; 2]) -> f64 {
        ((a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2)).sqrt()
    }

    #[test]
    fn clusters_stay_apart() {
        let each = 20;
        let points = embedding(&clusters(each), 3 * each);
        let pairs = || (0..60).flat_map(|i| (0..i).map(move |j| (i, j)));
        let of = |same: bool| pairs().filter(move |(i, j)| (i / each == j / each) == same);
        let within = of(true).map(|(i, j)| distance(points[i], points[j])).fold(0.0, f64::max);
        let between = of(false).map(|(i, j)| distance(points[i], points[j])).fold(f64::MAX, f64::min);
        assert!(within < between, "{within} within a cluster, {between} between two");
    }

    #[test]
    fn the_same_distances_give_the_same_bits() {
        let squares = clusters(7);
        let points = embedding(&squares, 21);
        assert!(points.iter().flatten().all(|v| v.is_finite()));
        assert_eq!(points, embedding(&squares, 21));
    }

    #[test]
    fn few_and_equal_instances_are_placed() {
        assert_eq!(embedding(&[], 0), Vec::<[f64; 2]>::new());
        assert_eq!(embedding(&[0.0], 1), [[0.0; 2]]);
        assert_eq!(embedding(&[0.0; 9], 3), [[0.0; 2]; 3]);
        let two = embedding(&[0.0, 4.0, 4.0, 0.0], 2);
        assert!(distance(two[0], two[1]) > 0.0 && two.iter().flatten().all(|v| v.is_finite()));
    }

    #[test]
    fn the_start_has_the_distances_of_points_in_a_plane() {
        let plane = [[0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [5.0, 2.0]];
        let squares: Vec<f64> = (0..16).map(|at| distance(plane[at / 4], plane[at % 4]).powi(2)).collect();
        let start = principal(&squares, 4);
        let scale = distance(start[0], start[1]) / 3.0;
        for at in 0..16 {
            let found = distance(start[at / 4], start[at % 4]) / scale;
            assert!((found.powi(2) - squares[at]).abs() < 1e-6, "{start:?}");
        }
    }

    #[test]
    fn the_slope_is_that_of_the_divergence() {
        let n = 9;
        let affinities = affinities(&clusters(3), n);
        assert!((affinities.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let points: Vec<[f64; 2]> =
            (0..n).map(|i| [(i as f64 * 1.7).sin(), (i as f64 * 0.9).cos()]).collect();
        let divergence = |points: &[[f64; 2]]| {
            let weight = |i: usize, j: usize| 1.0 / (1.0 + distance(points[i], points[j]).powi(2));
            let pairs = || (0..n * n).filter(|at| at / n != at % n);
            let whole = pairs().map(|at| weight(at / n, at % n)).sum::<f64>();
            let term = |at: usize| affinities[at] * (affinities[at] * whole / weight(at / n, at % n)).ln();
            pairs().map(term).sum::<f64>()
        };
        let slope = slope(&affinities, &points, 1.0);
        for i in 0..n {
            for axis in 0..2 {
                let moved = |by: f64| {
                    let mut points = points.clone();
                    points[i][axis] += by;
                    divergence(&points)
                };
                let wanted = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((slope[i][axis] - wanted).abs() < 1e-7, "{} {wanted}", slope[i][axis]);
            }
        }
    }
}
