//! Linear rules that put vectors into groups: fitted to labels, or to clusters where there are none.

use crate::rng::Stream;
use crate::{Error, Result};
use rayon::prelude::*;

/// Share of the identity in the covariance within classes, which has fewer samples than values.
const SHRINKAGE: f64 = 0.1;
/// Passes over the vectors after which clusters are taken as they are.
const MOST_PASSES: usize = 100;

/// Group g has the score `w_g . h + b_g`; the group of a vector is the one with the highest.
pub(crate) struct Discriminant {
    /// `[G, d]`
    pub weights: Vec<f64>,
    /// `[G]`
    pub biases: Vec<f64>,
}

/// Vectors `[N, d]`.
pub(crate) struct Vectors {
    pub width: usize,
    pub values: Vec<f64>,
}

impl Vectors {
    pub fn new(width: usize, values: &[f32]) -> Self {
        Vectors { width, values: values.iter().map(|&v| f64::from(v)).collect() }
    }
    fn rows(&self) -> impl ExactSizeIterator<Item = &[f64]> {
        self.values.chunks_exact(self.width.max(1))
    }
    fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.width..][..self.width]
    }
    fn len(&self) -> usize {
        self.values.len() / self.width.max(1)
    }
    /// The mean of each group `[G, d]` and its number of vectors.
    fn means(&self, of: &[usize], groups: usize) -> (Vectors, Vec<usize>) {
        let mut counts = vec![0; groups];
        let mut sums = vec![0.0; groups * self.width];
        for (row, &group) in self.rows().zip(of) {
            counts[group] += 1;
            add(&mut sums[group * self.width..][..self.width], row, 1.0);
        }
        for (sum, &count) in sums.chunks_mut(self.width.max(1)).zip(&counts) {
            sum.iter_mut().for_each(|v| *v /= count.max(1) as f64);
        }
        (Vectors { width: self.width, values: sums }, counts)
    }
}

impl Discriminant {
    /// Fisher's linear discriminant with a shrunken covariance:
    ///
    /// ```text
    /// S   = (1 - lambda) Z' Z / N + lambda c I,  Z the vectors less the mean m_g of their class, c the mean variance
    /// w_g = S^-1 m_g,  b_g = -m_g' S^-1 m_g / 2 + ln(n_g / N)
    /// ```
    ///
    /// With `A = (1 - lambda) / N` and `B = lambda c`, `S^-1 m = (m - Z' (B/A I + Z Z')^-1 Z m) / B`: the matrix that is
    /// solved is one of vectors, however wide they are.
    ///
    /// # Errors
    /// A group has no vector, or the vectors are not finite.
    pub fn of_labels(vectors: &Vectors, of: &[usize], groups: usize) -> Result<Self> {
        let (means, counts) = vectors.means(of, groups);
        if let Some(empty) = counts.iter().position(|&count| count == 0) {
            return Err(Error::refused(
                "tasks",
                format!("task {empty} of {groups} has no sample to fit its router to"),
            ));
        }
        let n = vectors.len();
        let width = vectors.width;
        let mut centred = vectors.values.clone();
        for (row, &group) in centred.chunks_mut(width).zip(of) {
            add(row, means.row(group), -1.0);
        }
        let centred = Vectors { width, values: centred };
        let variance = dot(&centred.values, &centred.values) / (n * width) as f64;
        // Classes without any spread are told apart by their means.
        let identity = if variance > 0.0 { SHRINKAGE * variance } else { 1.0 };
        let spread = (1.0 - SHRINKAGE) / n as f64;
        let products: Vec<f64> = (0..n * n)
            .into_par_iter()
            .map(|at| {
                let [i, j] = [at / n, at % n];
                let diagonal = if i == j { identity / spread } else { 0.0 };
                if j > i { 0.0 } else { dot(centred.row(i), centred.row(j)) + diagonal }
            })
            .collect();
        let factor = cholesky(products, n).ok_or_else(|| {
            Error::refused("tasks", "the prompts have states that are not finite: no router can be fitted")
        })?;
        let mut weights = Vec::with_capacity(groups * width);
        let mut biases = Vec::with_capacity(groups);
        for (mean, &count) in means.rows().zip(&counts) {
            let seen: Vec<f64> = centred.rows().map(|row| dot(row, mean)).collect();
            let solved = solve(&factor, seen);
            let mut weight = mean.to_vec();
            centred.rows().zip(&solved).for_each(|(row, &share)| add(&mut weight, row, -share));
            weight.iter_mut().for_each(|v| *v /= identity);
            biases.push(-0.5 * dot(&weight, mean) + (count as f64 / n as f64).ln());
            weights.extend(weight);
        }
        Ok(Discriminant { weights, biases })
    }

    /// The rule of the nearest centre, of clusters that k-means finds from centres that are drawn far from each other
    /// (k-means++): `w_g = m_g`, `b_g = -|m_g|^2 / 2`.
    ///
    /// # Errors
    /// There are fewer vectors than groups.
    pub fn of_clusters(vectors: &Vectors, groups: usize, stream: Stream) -> Result<Self> {
        if vectors.len() < groups {
            return Err(Error::config("clusters", groups, format!("at most {}, the samples", vectors.len())));
        }
        let mut centres = drawn_apart(vectors, groups, stream);
        let mut of = Vec::new();
        for _ in 0..MOST_PASSES {
            let rule = Discriminant::of_centres(&centres);
            let now: Vec<usize> = vectors.rows().map(|row| rule.group(row)).collect();
            if now == of {
                break;
            }
            of = now;
            let (means, counts) = vectors.means(&of, groups);
            for (group, _) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                centres.values[group * vectors.width..][..vectors.width].copy_from_slice(means.row(group));
            }
        }
        Ok(Discriminant::of_centres(&centres))
    }

    fn of_centres(centres: &Vectors) -> Self {
        let biases = centres.rows().map(|centre| -0.5 * dot(centre, centre)).collect();
        Discriminant { weights: centres.values.clone(), biases }
    }

    /// The group of a vector; the first among equals.
    pub fn group(&self, vector: &[f64]) -> usize {
        let mut best = (0, f64::NEG_INFINITY);
        for (group, (weight, bias)) in self.weights.chunks(vector.len().max(1)).zip(&self.biases).enumerate()
        {
            let score = dot(weight, vector) + bias;
            if score > best.1 {
                best = (group, score);
            }
        }
        best.0
    }
}

/// Vectors of which each is drawn with a probability that grows as the square of its distance from those before.
fn drawn_apart(vectors: &Vectors, groups: usize, stream: Stream) -> Vectors {
    let n = vectors.len();
    let draws = stream.uniform_vec(groups, 1.0);
    let mut distances = vec![1.0f64; n];
    let mut values = Vec::with_capacity(groups * vectors.width);
    for (number, draw) in draws.iter().enumerate() {
        // A draw is in -1..1.
        let mut left = (f64::from(*draw) + 1.0) / 2.0 * distances.iter().sum::<f64>();
        let reached = distances.iter().position(|distance| {
            left -= distance;
            left < 0.0
        });
        let centre = vectors.row(reached.unwrap_or(n - 1));
        values.extend_from_slice(centre);
        for (distance, row) in distances.iter_mut().zip(vectors.rows()) {
            let squares: f64 = row.iter().zip(centre).map(|(a, b)| (a - b) * (a - b)).sum();
            *distance = if number == 0 { squares } else { distance.min(squares) };
        }
    }
    Vectors { width: vectors.width, values }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(sum: &mut [f64], row: &[f64], factor: f64) {
    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
}

/// The lower factor of a matrix `[n, n]`, of which the lower half is read; none where it is not positive.
fn cholesky(mut matrix: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    for i in 0..n {
        for j in 0..=i {
            let value = matrix[i * n + j] - dot(&matrix[i * n..][..j], &matrix[j * n..][..j]);
            matrix[i * n + j] = if i == j {
                if !(value > 0.0 && value.is_finite()) {
                    return None;
                }
                value.sqrt()
            } else {
                value / matrix[j * n + j]
            };
        }
    }
    Some(matrix)
}

/// `x` of `L L' x = y`.
fn solve(factor: &[f64], mut y: Vec<f64>) -> Vec<f64> {
    let n = y.len();
    for i in 0..n {
        y[i] = (y[i] - dot(&factor[i * n..][..i], &y[..i])) / factor[i * n + i];
    }
    for i in (0..n).rev() {
        let later: f64 = (i + 1..n).map(|j| factor[j * n + i] * y[j]).sum();
        y[i] = (y[i] - later) / factor[i * n + i];
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three classes in four dimensions, of which the last is noise much larger than what tells the classes apart.
    fn noisy(n: usize) -> (Vectors, Vec<usize>) {
        let noise = Stream::new(5).normal_vec(4 * n, 1.0);
        let of: Vec<usize> = (0..n).map(|i| i % 3).collect();
        let values = noise.chunks(4).zip(&of).flat_map(|(z, &class)| {
            let centre = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]][class];
            [centre[0] + 0.1 * z[0], centre[1] + 0.1 * z[1], 0.1 * z[2], 30.0 * z[3]]
        });
        (Vectors::new(4, &values.collect::<Vec<f32>>()), of)
    }

    #[test]
    fn labels_are_told_apart_behind_noise_that_distances_drown_in() {
        let (vectors, of) = noisy(300);
        let (means, _) = vectors.means(&of, 3);
        let right =
            |rule: &Discriminant| vectors.rows().zip(&of).filter(|(row, of)| rule.group(row) == **of).count();
        let nearest = right(&Discriminant::of_centres(&means));
        assert!(nearest < 200, "{nearest}");
        // Shrinkage in proportion to the mean variance costs much where one direction has nearly all of it.
        let fitted = right(&Discriminant::of_labels(&vectors, &of, 3).unwrap());
        assert!(fitted > nearest + 40, "{fitted} {nearest}");
        let narrow: Vec<f32> = vectors
            .rows()
            .flat_map(|r| [r[0] as f32, r[1] as f32, r[2] as f32, r[3] as f32 / 300.0])
            .collect();
        let narrow = Vectors::new(4, &narrow);
        let rule = Discriminant::of_labels(&narrow, &of, 3).unwrap();
        assert!(narrow.rows().zip(&of).all(|(row, of)| rule.group(row) == *of));
    }

    #[test]
    fn the_rule_solves_the_equations_of_its_definition() {
        let (vectors, of) = noisy(30);
        let rule = Discriminant::of_labels(&vectors, &of, 3).unwrap();
        let (means, counts) = vectors.means(&of, 3);
        let mut covariance = [[0.0; 4]; 4];
        for (row, &group) in vectors.rows().zip(&of) {
            let z: Vec<f64> = row.iter().zip(means.row(group)).map(|(a, b)| a - b).collect();
            for (i, line) in covariance.iter_mut().enumerate() {
                (0..4).for_each(|j| line[j] += z[i] * z[j] / 30.0);
            }
        }
        let trace: f64 = (0..4).map(|i| covariance[i][i]).sum();
        for (g, weight) in rule.weights.chunks(4).enumerate() {
            for (i, line) in covariance.iter().enumerate() {
                let shrunk = |(j, value): (usize, &f64)| {
                    let identity = if i == j { SHRINKAGE * trace / 4.0 } else { 0.0 };
                    ((1.0 - SHRINKAGE) * value + identity) * weight[j]
                };
                let product: f64 = line.iter().enumerate().map(shrunk).sum();
                assert!((product - means.row(g)[i]).abs() < 1e-9, "{g} {i} {product}");
            }
            let bias = -0.5 * dot(weight, means.row(g)) + (counts[g] as f64 / 30.0).ln();
            assert!((rule.biases[g] - bias).abs() < 1e-9);
        }
    }

    #[test]
    fn clusters_are_found_without_labels() {
        let (vectors, of) = noisy(90);
        let near: Vec<f32> = vectors.rows().flat_map(|r| [r[0] as f32, r[1] as f32]).collect();
        let vectors = Vectors::new(2, &near);
        let rule = Discriminant::of_clusters(&vectors, 3, Stream::new(1)).unwrap();
        let groups: Vec<usize> = vectors.rows().map(|row| rule.group(row)).collect();
        for (i, &group) in groups.iter().enumerate() {
            assert_eq!(group == groups[0], of[i] == of[0]);
            assert_eq!(group == groups[1], of[i] == of[1]);
        }
        assert!(Discriminant::of_clusters(&vectors, 91, Stream::new(1)).is_err());
    }
}
