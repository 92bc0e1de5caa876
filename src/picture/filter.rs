//! Filters for resizing, and their weights in fixed point.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;
use std::fmt;
use std::ops::Range;

/// Bits behind the point of a weight: 32, less 8 of the values and 2 for sums beyond 0 and 1.
pub(super) const BITS: u32 = 22;

/// How a picture is resized, with the numbers that `resample` has in files of transformers.
///
/// Each output pixel is a weighted mean of the input pixels near its centre `c = (o + 0.5) s`, `s = n_in / n_out`, with
/// the weights `f((i + 0.5 - c) / max(s, 1))` divided by their sum: when a picture is reduced, the filter is stretched, so
/// that every input pixel counts. `Nearest` takes the pixel under the centre.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    Nearest,
    /// `sinc(x) sinc(x/3)` for |x| < 3.
    Lanczos,
    /// `1 - |x|` for |x| < 1.
    Bilinear,
    /// Catmull-Rom, the cubic with `a = -0.5`, for |x| < 2.
    Bicubic,
    /// 1 for |x| < 0.5.
    Box,
    /// `sinc(x) (0.54 + 0.46 cos(pi x))` for |x| < 1.
    Hamming,
}

impl Filter {
    /// In the order of their numbers in `resample`.
    pub const ALL: [Filter; 6] =
        [Filter::Nearest, Filter::Lanczos, Filter::Bilinear, Filter::Bicubic, Filter::Box, Filter::Hamming];

    pub fn name(self) -> &'static str {
        match self {
            Filter::Nearest => "nearest",
            Filter::Lanczos => "lanczos",
            Filter::Bilinear => "bilinear",
            Filter::Bicubic => "bicubic",
            Filter::Box => "box",
            Filter::Hamming => "hamming",
        }
    }

    /// Where the filter ends, in pixels.
    fn support(self) -> f64 {
        match self {
            Filter::Nearest | Filter::Box => 0.5,
            Filter::Bilinear | Filter::Hamming => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    /// The weight at a distance. The order of sums and products is Pillow's, and so are the single-precision constants.
    fn weight(self, x: f64) -> f64 {
        let a = x.abs();
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        match self {
            Filter::Nearest | Filter::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Filter::Bilinear => (1.0 - a).max(0.0),
            Filter::Hamming if a == 0.0 => 1.0,
            Filter::Hamming if a >= 1.0 => 0.0,
            Filter::Hamming => {
                (a * PI).sin() / (a * PI) * (f64::from(0.54f32) + f64::from(0.46f32) * (a * PI).cos())
            }
            Filter::Bicubic if a < 1.0 => (1.5 * a - 2.5) * a * a + 1.0,
            Filter::Bicubic if a < 2.0 => (((a - 5.0) * a + 8.0) * a - 4.0) * -0.5,
            Filter::Bicubic => 0.0,
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The input pixels of one output pixel, and where their weights are.
pub(super) struct Taps {
    pub inputs: Range<usize>,
    weights: Range<usize>,
}

/// The weights along one axis.
pub(super) struct Axis {
    pub taps: Vec<Taps>,
    weights: Vec<i32>,
    layout: Layout,
}

/// How weights lie in memory.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// How often each one is repeated.
    pub repeat: usize,
    /// Those of an output are filled up with zeros to a multiple of this number.
    pub block: usize,
}

impl Axis {
    /// The weights for some of `to` output pixels of `from` input pixels.
    pub fn new(filter: Filter, from: usize, to: usize, wanted: Range<usize>, layout: Layout) -> Self {
        let mut axis = Axis { taps: Vec::with_capacity(wanted.len()), weights: Vec::new(), layout };
        if filter == Filter::Nearest {
            axis.nearest(from, to, wanted);
            return axis;
        }
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let inverse = 1.0 / stretch;
        for o in wanted {
            let center = (o as f64 + 0.5) * scale;
            // Conversions cut off towards zero, and negative numbers become 0.
            let low = (center - support + 0.5) as usize;
            let high = ((center + support + 0.5) as usize).min(from);
            let weights: Vec<f64> =
                (0..high - low).map(|i| filter.weight(((i + low) as f64 - center + 0.5) * inverse)).collect();
            let sum: f64 = weights.iter().fold(0.0, |sum, weight| sum + weight);
            axis.push(low, weights.iter().map(|weight| if sum == 0.0 { *weight } else { weight / sum }));
        }
        axis
    }

    /// One pixel of weight 1 each. Pillow adds steps up, which decides ties.
    fn nearest(&mut self, from: usize, to: usize, wanted: Range<usize>) {
        let step = from as f64 / to as f64;
        let mut center = step * 0.5;
        for o in 0..wanted.end {
            if o >= wanted.start {
                self.push((center as usize).min(from - 1), [1.0].into_iter());
            }
            center += step;
        }
    }

    fn push(&mut self, low: usize, weights: impl Iterator<Item = f64>) {
        let first = self.weights.len();
        for weight in weights {
            let half = if weight < 0.0 { -0.5 } else { 0.5 };
            let fixed = (weight * f64::from(1u32 << BITS) + half) as i32;
            self.weights.extend(std::iter::repeat_n(fixed, self.layout.repeat));
        }
        let count = (self.weights.len() - first) / self.layout.repeat;
        let end = first + (self.weights.len() - first).next_multiple_of(self.layout.block);
        self.weights.resize(end, 0);
        self.taps.push(Taps { inputs: low..low + count, weights: first..end });
    }

    /// The weights of the inputs of an output.
    pub fn weights(&self, taps: &Taps) -> &[i32] {
        &self.weights[taps.weights.clone()]
    }
}
