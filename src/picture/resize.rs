//! Resizing with Pillow's bits: across, rounded to bytes, then down.
//!
//! Weights are integers of 22 bits behind the point and sums have 32 bits, so that every order of a sum gives the same
//! bits: rows are computed on all threads. An axis whose length does not change is not touched.

use super::Picture;
use super::filter::{Axis, BITS, Filter, Layout};
use crate::simd::vectorised;
use rayon::prelude::*;
use std::ops::Range;

/// What every sum starts with.
const HALF: i32 = 1 << (BITS - 1);
/// Bytes of a row whose sums are in registers: eight pixels.
const LANES: usize = 24;

fn byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

impl Picture {
    /// The picture in another size, bit for bit as Pillow's `Image.resize` makes it.
    ///
    /// ```
    /// use mixlora::picture::{Filter, Picture};
    /// let picture = Picture::new(2, 1, vec![0, 0, 0, 255, 255, 255])?;
    /// let half = picture.resized(1, 1, Filter::Box);
    /// assert_eq!(half.rgb(), [128, 128, 128]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Panics
    /// A side is 0.
    pub fn resized(&self, width: usize, height: usize, filter: Filter) -> Picture {
        assert!(width > 0 && height > 0, "a picture has at least one pixel");
        self.resized_part((width, height), 0..width, 0..height, filter)
    }

    /// Some columns and rows of the picture in another size, without the work for the others.
    pub(super) fn resized_part(
        &self,
        (width, height): (usize, usize),
        columns: Range<usize>,
        rows: Range<usize>,
        filter: Filter,
    ) -> Picture {
        if width == self.width() && height == self.height() {
            return self.part(columns, rows);
        }
        if height == self.height() {
            return self.across(width, columns, rows, filter);
        }
        let axis = Axis::new(filter, self.height(), height, rows, Layout { repeat: 1, block: 1 });
        // Rows that no output uses are left out of the first pass.
        let first = axis.taps.iter().map(|taps| taps.inputs.start).min().unwrap_or(0);
        let last = axis.taps.iter().map(|taps| taps.inputs.end).max().unwrap_or(0);
        if width == self.width() {
            return self.part(columns, first..last).down(&axis, first);
        }
        self.across(width, columns, first..last, filter).down(&axis, first)
    }

    fn across(&self, width: usize, columns: Range<usize>, rows: Range<usize>, filter: Filter) -> Picture {
        let axis = Axis::new(filter, self.width(), width, columns, Layout { repeat: 3, block: LANES });
        let wide_row = 3 * axis.taps.len();
        let mut rgb = vec![0; wide_row * rows.len()];
        let each = rgb.par_chunks_mut(wide_row).zip(rows.clone());
        // Whole blocks are read at the end of a row too, with weights of 0.
        let padded = || vec![0; 3 * self.width() + LANES];
        each.for_each_init(padded, |row, (out, y)| {
            row[..3 * self.width()].copy_from_slice(self.row(y));
            row_across(row, &axis, out);
        });
        picture(axis.taps.len(), rows.len(), rgb)
    }

    /// The second pass over rows of which the first one is number `first`.
    fn down(&self, axis: &Axis, first: usize) -> Picture {
        let wide_row = 3 * self.width();
        let mut rgb = vec![0; wide_row * axis.taps.len()];
        rgb.par_chunks_mut(wide_row).zip(&axis.taps).for_each(|(out, taps)| {
            let rows = &self.rgb()[wide_row * (taps.inputs.start - first)..][..wide_row * taps.inputs.len()];
            row_down(rows, axis.weights(taps), out);
        });
        picture(self.width(), axis.taps.len(), rgb)
    }
}

fn picture(width: usize, height: usize, rgb: Vec<u8>) -> Picture {
    Picture::new(width, height, rgb).expect("as many bytes as pixels")
}

#[inline(always)]
fn add(sums: &mut [i32; LANES / 3], values: &[u8; LANES], weights: &[i32; LANES], from: usize) {
    for (lane, sum) in sums.iter_mut().enumerate() {
        *sum = sum.wrapping_add(i32::from(values[from + lane]).wrapping_mul(weights[from + lane]));
    }
}

vectorised! {
    fn row_across(row: &[u8], axis: &Axis, out: &mut [u8]) {
        for (pixel, taps) in out.as_chunks_mut::<3>().0.iter_mut().zip(&axis.taps) {
            let weights = axis.weights(taps).as_chunks::<LANES>().0;
            let values = row[3 * taps.inputs.start..].as_chunks::<LANES>().0;
            let mut first = [0i32; LANES / 3];
            let mut second = first;
            let mut third = first;
            for (values, weights) in values.iter().zip(weights) {
                add(&mut first, values, weights, 0);
                add(&mut second, values, weights, LANES / 3);
                add(&mut third, values, weights, 2 * LANES / 3);
            }
            let mut color = [HALF; 3];
            for (lane, sum) in first.iter().chain(&second).chain(&third).enumerate() {
                color[lane % 3] = color[lane % 3].wrapping_add(*sum);
            }
            *pixel = color.map(byte);
        }
    }
}

vectorised! {
    fn row_down(rows: &[u8], weights: &[i32], out: &mut [u8]) {
        let wide_row = out.len();
        for (index, out) in out.chunks_mut(LANES).enumerate() {
            let mut sums = [HALF; LANES];
            for (row, weight) in rows.chunks_exact(wide_row).zip(weights) {
                let values = &row[index * LANES..][..out.len()];
                match values.first_chunk::<LANES>() {
                    Some(values) => {
                        for lane in 0..LANES {
                            sums[lane] = sums[lane].wrapping_add(i32::from(values[lane]).wrapping_mul(*weight));
                        }
                    }
                    None => {
                        for (sum, value) in sums.iter_mut().zip(values) {
                            *sum = sum.wrapping_add(i32::from(*value).wrapping_mul(*weight));
                        }
                    }
                }
            }
            for (byte_out, sum) in out.iter_mut().zip(sums) {
                *byte_out = byte(sum);
            }
        }
    }
}
