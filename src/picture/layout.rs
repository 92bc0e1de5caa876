//! The tiles that a picture becomes, known from its sides alone.

use super::processor::{Fit, Processor};
use super::size::{Size, bounded, check_aspect, longest_edge, shortest_edge, whole_tiles};
use crate::{Error, Result};
use serde::Serialize;

/// How many tiles a picture becomes, and their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Rows of the grid; 0 where the picture is not cut.
    pub rows: usize,
    /// Columns of the grid; 0 where the picture is not cut.
    pub columns: usize,
    /// The height of each tile.
    pub height: usize,
    /// The width of each tile.
    pub width: usize,
}

impl Layout {
    /// N, the number of tiles.
    pub fn count(self) -> usize {
        self.rows * self.columns + 1
    }
}

impl Processor {
    /// The layout of the [`tiles`](Processor::tiles) of a picture of this height and width, without its pixels.
    ///
    /// # Errors
    /// Those of [`tiles`](Processor::tiles), or a side is 0.
    pub fn layout(&self, height: usize, width: usize) -> Result<Layout> {
        if height == 0 || width == 0 {
            return Err(Error::refused("picture", format!("{height} x {width} pixels are none")));
        }
        let side = height.max(width);
        let given =
            if self.pad.is_some() { Size { height: side, width: side } } else { Size { height, width } };
        bounded(given)?;
        let whole = |size: Size| Layout { rows: 0, columns: 0, height: size.height, width: size.width };
        let Fit::Tiles { longest, tile, split } = self.fit else {
            let size = match self.fit {
                Fit::Shortest { edge } => shortest_edge(given, edge),
                Fit::Exact(size) => size,
                Fit::Tiles { tile, .. } => Size { height: tile, width: tile },
            };
            let crop = self.crop.unwrap_or(size);
            bounded(crop)?;
            bounded(Size { height: given.height, width: crop.width.min(size.width) })?;
            return Ok(whole(crop));
        };
        check_aspect(given)?;
        let tile_size = Size { height: tile, width: tile };
        if !split {
            return Ok(whole(tile_size));
        }
        let size = whole_tiles(longest_edge(given, longest), tile);
        bounded(size)?;
        if size.width <= tile && size.height <= tile {
            return Ok(whole(size));
        }
        Ok(Layout { rows: size.height / tile, columns: size.width / tile, ..whole(tile_size) })
    }
}
