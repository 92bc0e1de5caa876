//! Tokens with their places in a text.

use std::ops::Range;

/// A token and its byte range in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub id: u32,
    pub source: Range<usize>,
}
