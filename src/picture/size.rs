//! Sides of a picture.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The most pixels that a picture may have on its way: one above this is refused.
const MOST_PIXELS: usize = 100_000_000;
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
