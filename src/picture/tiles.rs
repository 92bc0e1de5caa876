//! What a tower reads of one picture, as bytes.

use super::Picture;

/// Tiles of a picture in the order in which a model reads them: those of a grid row by row, then the whole picture; or
/// the whole picture alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiles {
    rows: usize,
    columns: usize,
    pictures: Vec<Picture>,
}

/// Pixels between tiles on a sheet.
const GAP: usize = 2;

impl Tiles {
    /// The whole picture alone.
    pub(super) fn whole(picture: Picture) -> Self {
        Tiles { rows: 0, columns: 0, pictures: vec![picture] }
    }

    /// The tiles of a picture whose sides are multiples of a tile's, and the whole one in the size of a tile.
    pub(super) fn cut(picture: &Picture, tile: usize, whole: Picture) -> Self {
        let rows = picture.height() / tile;
        let columns = picture.width() / tile;
        let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row * tile, column * tile)));
        let mut pictures: Vec<Picture> =
            places.map(|(top, left)| picture.part(left..left + tile, top..top + tile)).collect();
        pictures.push(whole);
        Tiles { rows, columns, pictures }
    }

    /// N, the number of tiles.
    pub fn count(&self) -> usize {
        self.pictures.len()
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
        self.pictures[0].height()
    }
    /// The width of each tile.
    pub fn width(&self) -> usize {
        self.pictures[0].width()
    }
    pub fn pictures(&self) -> &[Picture] {
        &self.pictures
    }
    /// All bytes, `[N, height, width, 3]`.
    pub fn bytes(&self) -> Vec<u8> {
        self.pictures.iter().flat_map(|tile| tile.rgb()).copied().collect()
    }

    /// The CRC-32 of all bytes `[N, height, width, 3]`: equal where a model sees the same.
    pub fn checksum(&self) -> u32 {
        let mut sum = crc32fast::Hasher::new();
        self.pictures.iter().for_each(|tile| sum.update(tile.rgb()));
        sum.finalize()
    }

    /// The tiles on one sheet, for people to look at: the grid with white lines between its tiles, the whole picture below.
    pub fn sheet(&self) -> Picture {
        let grid_rows = self.rows.max(1);
        let grid_columns = self.columns.max(1);
        let all_rows = self.count().div_ceil(grid_columns).max(grid_rows);
        let side = |tiles: usize, length: usize| tiles * (length + GAP) - GAP;
        let width = side(grid_columns, self.width());
        let height = side(all_rows, self.height());
        let mut sheet = Picture::filled(width, height, [255; 3]).expect("there is a tile");
        for (index, tile) in self.pictures.iter().enumerate() {
            let left = index % grid_columns * (self.width() + GAP);
            let top = index / grid_columns * (self.height() + GAP);
            sheet.paste(tile, left, top);
        }
        sheet
    }
}
