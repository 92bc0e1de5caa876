//! What a tower reads of one picture, as bytes.

use super::Picture;
use super::size::{Size, bounded};
use crate::Result;

/// Tiles of a picture in the order in which a model reads them: those of a grid row by row, then the whole picture; or
/// the whole picture alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiles {
    rows: usize,
    columns: usize,
    height: usize,
    width: usize,
    bytes: Vec<u8>,
}

/// Pixels between tiles on a sheet.
const GAP: usize = 2;

impl Tiles {
    /// The whole picture alone.
    pub(super) fn whole(picture: Picture) -> Self {
        let height = picture.height();
        let width = picture.width();
        Tiles { rows: 0, columns: 0, height, width, bytes: picture.into_rgb() }
    }

    /// The tiles of a picture whose sides are multiples of a tile's, and the whole one in the size of a tile.
    pub(super) fn cut(picture: &Picture, tile: usize, whole: &Picture) -> Self {
        let rows = picture.height() / tile;
        let columns = picture.width() / tile;
        let mut bytes = Vec::with_capacity(picture.rgb().len() + whole.rgb().len());
        for row in 0..rows {
            for column in 0..columns {
                for y in row * tile..(row + 1) * tile {
                    bytes.extend_from_slice(&picture.row(y)[3 * tile * column..][..3 * tile]);
                }
            }
        }
        bytes.extend_from_slice(whole.rgb());
        Tiles { rows, columns, height: tile, width: tile, bytes }
    }

    /// N, the number of tiles.
    pub fn count(&self) -> usize {
        self.rows * self.columns + 1
    }
    /// Rows of the grid; 0 where the picture was not cut.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns of the grid; 0 where the picture was not cut.
    pub fn columns(&self) -> usize {
        self.columns
    }
    /// The height of each tile.
    pub fn height(&self) -> usize {
        self.height
    }
    /// The width of each tile.
    pub fn width(&self) -> usize {
        self.width
    }
    /// All bytes, `[N, height, width, 3]`.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// The bytes of each tile, `[height, width, 3]`.
    pub(super) fn each(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(3 * self.height * self.width)
    }

    /// The CRC-32 of all bytes: equal where a model sees the same.
    pub fn checksum(&self) -> u32 {
        crc32fast::hash(&self.bytes)
    }

    /// The tiles on one sheet, for people to look at: the grid with white lines between its tiles, the whole picture below.
    ///
    /// # Errors
    /// The sheet would have more than 100 million pixels.
    pub fn sheet(&self) -> Result<Picture> {
        let columns = self.columns.max(1);
        let rows = self.rows + 1;
        let side = |tiles: usize, length: usize| tiles * (length + GAP) - GAP;
        let size = Size { height: side(rows, self.height), width: side(columns, self.width) };
        bounded(size)?;
        let mut sheet = Picture::filled(size.width, size.height, [255; 3])?;
        for (index, bytes) in self.each().enumerate() {
            let tile = Picture::new(self.width, self.height, bytes.to_vec())?;
            sheet.paste(&tile, index % columns * (self.width + GAP), index / columns * (self.height + GAP));
        }
        Ok(sheet)
    }
}
