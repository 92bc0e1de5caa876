//! Sides of a picture.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The most pixels that a picture may have on its way: one above this is refused.
const MOST_PIXELS: usize = 100_000_000;

/// No side of a picture of several tiles is longer, as in transformers.
const LONGEST_OF_TILES: usize = 4096;
/// How many times longer one side of a picture of several tiles may be than the other.
const ASPECT: usize = 200;

/// Sides in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub height: usize,
    pub width: usize,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.height, self.width)
    }
}

/// Refuses a picture that would be too large.
pub(super) fn bounded(size: Size) -> Result<()> {
    if size.height.saturating_mul(size.width) > MOST_PIXELS {
        let what = format!("it would have {size} pixels on its way, more than {MOST_PIXELS}");
        return Err(Error::refused("picture", what));
    }
    Ok(())
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
