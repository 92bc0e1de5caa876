//! The tiles that a picture becomes, known from its sides alone.

use super::processor::{Fit, Processor};
use super::size::{Size, bounded};
use crate::{Error, Result};
use serde::Serialize;

/// No side of a picture of several tiles is longer, as in transformers.
const LONGEST_OF_TILES: usize = 4096;
/// How many times longer one side of a picture of several tiles may be than the other.
const ASPECT: usize = 200;

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

/// Refuses a picture that is too narrow for tiles.
pub(super) fn check_aspect(Size { height, width }: Size) -> Result<()> {
    if width.max(height) > ASPECT * width.min(height) {
        let what =
            format!("{width} x {height} pixels: one side may be {ASPECT} times the other to be cut to tiles");
        return Err(Error::refused("picture", what));
    }
    Ok(())
}

/// The size with the shorter side `edge`; the quotient is cut off.
pub(super) fn shortest_edge(Size { height, width }: Size, edge: usize) -> Size {
    let short = width.min(height);
    Size { height: edge * height / short, width: edge * width / short }
}

/// The size with the longer side `longest`, in the arithmetic of transformers: quotients in f64, cut off.
pub(super) fn longest_edge(size: Size, longest: usize) -> Size {
    let aspect = size.width as f64 / size.height as f64;
    let even = |length: f64| (length as usize).next_multiple_of(2).max(1);
    let sized = if size.width >= size.height {
        Size { height: even(longest as f64 / aspect), width: longest }
    } else {
        Size { height: longest, width: even(longest as f64 * aspect) }
    };
    if sized.width.max(sized.height) <= LONGEST_OF_TILES {
        return sized;
    }
    let aspect = sized.width as f64 / sized.height as f64;
    let longest = LONGEST_OF_TILES;
    if sized.width >= sized.height {
        Size { height: ((longest as f64 / aspect) as usize).max(1), width: longest }
    } else {
        Size { height: longest, width: ((longest as f64 * aspect) as usize).max(1) }
    }
}

/// The size with both sides up to multiples of a tile's.
pub(super) fn whole_tiles(size: Size, tile: usize) -> Size {
    let aspect = size.width as f64 / size.height as f64;
    let up = |length: usize| length.max(1).next_multiple_of(tile);
    if size.width >= size.height {
        let width = up(size.width);
        Size { height: up((width as f64 / aspect) as usize), width }
    } else {
        let height = up(size.height);
        Size { height, width: up((height as f64 * aspect) as usize) }
    }
}
