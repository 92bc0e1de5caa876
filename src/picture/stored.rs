//! What readers of files find, before it is turned and noted.

/// What a reader of one kind of file finds in a header.
pub(super) struct Header {
    pub width: usize,
    pub height: usize,
    pub pixel: &'static str,
    pub alpha: bool,
    pub orientation: u8,
    /// Has more than one frame.
    pub moves: bool,
}

/// RGB bytes as they are stored, and the share of pixels that are not opaque.
pub(super) struct Stored {
    pub rgb: Vec<u8>,
    pub transparent: f64,
}
