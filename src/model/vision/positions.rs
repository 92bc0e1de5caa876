//! Position embeddings for pictures of another size than the tower was made for.

use crate::{Device, Result, Tensor};

/// The constant of the cubic: that of `interpolate` in PyTorch, not that of picture resampling.
const A: f64 = -0.75;

/// The weight of a value at a distance, in units of the grid.
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// The weights of `from` values for each of `to`: centres in the middle of values, values beyond the ends those at the
/// ends. `[to][from]`
fn weights(from: usize, to: usize) -> Vec<Vec<f64>> {
    let row = |i: usize| {
        let centre = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let first = centre.floor();
        let mut row = vec![0.0; from];
        for tap in -1..=2 {
            let at = first + f64::from(tap);
            let end = at.clamp(0.0, from as f64 - 1.0);
            row[end as usize] += cubic(centre - at);
        }
        row
    };
    (0..to).map(row).collect()
}

/// The matrix that turns embeddings of a grid of `side x side` patches into those of `rows x columns`, both row by row:
/// bicubic, `[rows * columns + kept, side * side + kept]`, with `kept` rows before the grid that stay as they are. None
/// where the grids are the same.
pub(super) fn resized(
    device: &Device,
    side: usize,
    [rows, columns]: [usize; 2],
    kept: usize,
) -> Result<Option<Tensor>> {
    if rows == side && columns == side {
        return Ok(None);
    }
    let [down, across] = [weights(side, rows), weights(side, columns)];
    let width = side * side + kept;
    let mut matrix = vec![0f32; (rows * columns + kept) * width];
    for row in 0..kept {
        matrix[row * width + row] = 1.0;
    }
    for (to, out) in matrix[kept * width..].chunks_mut(width).enumerate() {
        for (from, value) in out[kept..].iter_mut().enumerate() {
            *value = (down[to / columns][from / side] * across[to % columns][from % side]) as f32;
        }
    }
    Tensor::from_f32(device, &[rows * columns + kept, width], &matrix).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_those_of_pytorch() {
        for (from, to) in [(3, 5), (5, 3), (4, 4), (1, 7), (24, 16)] {
            for row in weights(from, to) {
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{from} to {to}");
            }
        }
        // From PyTorch's interpolate of 0, 1, .., 8 to twice as many.
        for (at, want) in [(0, -0.105_468_75), (8, 3.703125)] {
            let value: f64 = weights(9, 18)[at].iter().enumerate().map(|(i, w)| i as f64 * w).sum();
            assert!((value - want).abs() < 1e-12, "{at}: {value}");
        }
    }
}
