//! A picture in memory.

use crate::{Error, Result};
use image::ImageEncoder;
use image::codecs::png::PngEncoder;
use std::ops::Range;

/// Upright RGB bytes, `[height, width, 3]`, rows from the top. Both sides are at least 1.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({} x {}, {:08x})", self.width, self.height, self.checksum())
    }
}

impl Picture {
    /// A picture of `height * width * 3` bytes.
    ///
    /// # Errors
    /// A side is 0, or the number of bytes is another one.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        let bytes = width.checked_mul(height).and_then(|pixels| pixels.checked_mul(3));
        if bytes != Some(rgb.len()) || rgb.is_empty() {
            let expected = format!("{height} x {width} x 3 bytes, at least one pixel");
            return Err(Error::shape("picture", expected, format!("{} bytes", rgb.len())));
        }
        Ok(Picture { width, height, rgb })
    }

    /// A picture of one colour.
    ///
    /// # Errors
    /// A side is 0.
    pub fn filled(width: usize, height: usize, color: [u8; 3]) -> Result<Self> {
        Picture::new(width, height, color.repeat(width.saturating_mul(height)))
    }

    pub fn width(&self) -> usize {
        self.width
    }
    pub fn height(&self) -> usize {
        self.height
    }
    /// The bytes, `[height, width, 3]`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
    pub(super) fn into_rgb(self) -> Vec<u8> {
        self.rgb
    }
    /// The CRC-32 of the bytes: equal for equal pixels of equal width.
    pub fn checksum(&self) -> u32 {
        crc32fast::hash(&self.rgb)
    }
    /// The bytes of a row.
    pub(super) fn row(&self, y: usize) -> &[u8] {
        &self.rgb[3 * self.width * y..][..3 * self.width]
    }

    /// The part in these columns and rows, which must lie inside and not be empty.
    pub(super) fn part(&self, columns: Range<usize>, rows: Range<usize>) -> Picture {
        let width = columns.len();
        let height = rows.len();
        let rgb = rows.flat_map(|y| &self.row(y)[3 * columns.start..3 * columns.end]).copied().collect();
        Picture { width, height, rgb }
    }

    /// Copies a picture to a place, where it must fit.
    pub(super) fn paste(&mut self, other: &Picture, left: usize, top: usize) {
        for y in 0..other.height {
            let at = 3 * (self.width * (top + y) + left);
            self.rgb[at..at + 3 * other.width].copy_from_slice(other.row(y));
        }
    }

    /// The picture turned upright by an EXIF orientation from 1 to 8; others mean 1.
    pub(super) fn turned(self, orientation: u8) -> Picture {
        let w = self.width;
        let h = self.height;
        let from: fn(usize, usize, usize, usize) -> (usize, usize) = match orientation {
            2 => |x, y, w, _| (w - 1 - x, y),
            3 => |x, y, w, h| (w - 1 - x, h - 1 - y),
            4 => |x, y, _, h| (x, h - 1 - y),
            5 => |x, y, _, _| (y, x),
            6 => |x, y, _, h| (y, h - 1 - x),
            7 => |x, y, w, h| (w - 1 - y, h - 1 - x),
            8 => |x, y, w, _| (w - 1 - y, x),
            _ => return self,
        };
        let lies_on_its_side = orientation > 4;
        let width = if lies_on_its_side { h } else { w };
        let height = if lies_on_its_side { w } else { h };
        let mut rgb = Vec::with_capacity(self.rgb.len());
        for y in 0..height {
            for x in 0..width {
                let (from_x, from_y) = from(x, y, w, h);
                let at = 3 * (from_y * w + from_x);
                rgb.extend_from_slice(&self.rgb[at..at + 3]);
            }
        }
        Picture { width, height, rgb }
    }

    /// The picture as the bytes of a PNG file.
    ///
    /// # Errors
    /// It is too large for a PNG file.
    pub fn to_png(&self) -> Result<Vec<u8>> {
        let side =
            |length: usize| u32::try_from(length).map_err(|error| Error::refused("png", error.to_string()));
        let width = side(self.width)?;
        let height = side(self.height)?;
        let mut bytes = Vec::new();
        let encoder = PngEncoder::new(&mut bytes);
        encoder
            .write_image(&self.rgb, width, height, image::ExtendedColorType::Rgb8)
            .map_err(|error| Error::refused("png", error.to_string()))?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Orientations of a picture of 2 x 3 pixels with the values 0 to 5.
    #[test]
    fn pictures_are_turned() {
        let rgb: Vec<u8> = (0..6).flat_map(|value| [value; 3]).collect();
        let picture = Picture::new(2, 3, rgb).unwrap();
        let turned = |orientation| {
            let turned = picture.clone().turned(orientation);
            (turned.width, turned.rgb.iter().step_by(3).copied().collect::<Vec<u8>>())
        };
        assert_eq!(turned(1), (2, vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(turned(2), (2, vec![1, 0, 3, 2, 5, 4]));
        assert_eq!(turned(3), (2, vec![5, 4, 3, 2, 1, 0]));
        assert_eq!(turned(4), (2, vec![4, 5, 2, 3, 0, 1]));
        assert_eq!(turned(5), (3, vec![0, 2, 4, 1, 3, 5]));
        assert_eq!(turned(6), (3, vec![4, 2, 0, 5, 3, 1]));
        assert_eq!(turned(7), (3, vec![5, 3, 1, 4, 2, 0]));
        assert_eq!(turned(8), (3, vec![1, 3, 5, 0, 2, 4]));
    }

    #[test]
    fn sizes_must_fit() {
        assert!(Picture::new(2, 2, vec![0; 11]).is_err());
        assert!(Picture::new(0, 5, Vec::new()).is_err());
        assert!(Picture::new(usize::MAX, 3, vec![0; 9]).is_err());
    }
}
