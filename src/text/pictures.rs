//! How rows of pictures are written in a text: each place of a picture becomes as many image tokens as it has rows.

use super::{PICTURE, Tokenizer};
use crate::model::vision::{ProjectorKind, VisionConfig};
use crate::{Error, Result};
use std::ops::Range;

/// How a model writes the rows of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PictureText {
    /// One image token for each row.
    Rows,
    /// Rows of each tile between tags that name its place, and the whole picture behind them (Idefics3, SmolVLM).
    Tiles,
}

/// A tag before each tile, and behind the last one.
const FRAME: &str = "<fake_token_around_image>";
/// The tag of the whole picture.
const WHOLE: &str = "<global-img>";

impl PictureText {
    /// How the model with this vision part writes them.
    pub fn of(config: &VisionConfig) -> Self {
        match config.projector {
            ProjectorKind::Shuffle { .. } => PictureText::Tiles,
            _ => PictureText::Rows,
        }
    }

    /// A picture's rows in a text; it is cut into `rows x columns` tiles, 0 where it is not cut.
    fn of_picture(self, [rows, columns]: [usize; 2], each: usize) -> String {
        let tokens = PICTURE.repeat(each);
        if self == PictureText::Rows {
            return tokens;
        }
        let mut text = String::new();
        for row in 1..=rows {
            for column in 1..=columns {
                text += &format!("{FRAME}<row_{row}_col_{column}>{tokens}");
            }
            text.push('\n');
        }
        if rows > 0 {
            text.push('\n');
        }
        text + &format!("{FRAME}{WHOLE}{tokens}{FRAME}")
    }

    /// A text with every place of a picture replaced by its rows, `each` for a tile; `grids` has rows and columns of
    /// tiles of each picture, in order.
    ///
    /// ```
    /// use mixlora::text::PictureText;
    /// let text = PictureText::Rows.expand("USER: <image>\nWhat is it?", &[[0, 0]], 3)?;
    /// assert_eq!(text, "USER: <image><image><image>\nWhat is it?");
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The number of places is not that of the pictures.
    pub fn expand(self, text: &str, grids: &[[usize; 2]], each: usize) -> Result<String> {
        self.expand_placed(text, grids, each).map(|expanded| expanded.text)
    }

    /// The same with the place of each picture.
    ///
    /// # Errors
    /// The number of places is not that of the pictures.
    pub fn expand_placed(self, text: &str, grids: &[[usize; 2]], each: usize) -> Result<Expanded> {
        let places = text.matches(PICTURE).count();
        if places != grids.len() {
            let what = format!("has {places} places of pictures ({PICTURE}) for {} pictures", grids.len());
            return Err(Error::refused("prompt", what));
        }
        let mut pieces = text.split(PICTURE);
        let mut out = pieces.next().unwrap_or_default().to_string();
        let mut pictures = Vec::with_capacity(places);
        for (grid, piece) in grids.iter().zip(pieces) {
            let start = out.len();
            out += &self.of_picture(*grid, each);
            pictures.push(start..out.len());
            out += piece;
        }
        Ok(Expanded { text: out, pictures })
    }
}

/// A text with the rows of its pictures written out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expanded {
    pub text: String,
    /// The bytes of each picture in it: its rows and what stands between and around them.
    pub pictures: Vec<Range<usize>>,
}

impl Expanded {
    /// A text without pictures.
    pub fn plain(text: String) -> Self {
        Expanded { text, pictures: Vec::new() }
    }

    /// Where a byte of the text before stands in this one.
    ///
    /// ```
    /// use mixlora::text::PictureText;
    /// let expanded = PictureText::Rows.expand_placed("a<image>b<image>c", &[[0, 0]; 2], 3)?;
    /// assert_eq!([0, 1, 8, 9, 16].map(|at| expanded.place_of(at)), [0, 1, 22, 23, 44]);
    /// assert_eq!(expanded.pictures, [1..22, 23..44]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    pub fn place_of(&self, byte: usize) -> usize {
        let mut at = byte;
        for picture in &self.pictures {
            if at >= picture.start + PICTURE.len() {
                at = at - PICTURE.len() + picture.len();
            }
        }
        at
    }

    /// Where a range of the text before stands in this one.
    pub fn range_of(&self, range: Range<usize>) -> Range<usize> {
        self.place_of(range.start)..self.place_of(range.end)
    }
}

/// A rendered prompt of a model that is shown no picture.
///
/// # Errors
/// It has places of pictures, and the model a token for them.
pub fn without_pictures(prompt: String, tokenizer: &Tokenizer) -> Result<String> {
    let places = prompt.matches(PICTURE).count();
    if places == 0 || tokenizer.token_id(PICTURE).is_none() {
        return Ok(prompt);
    }
    Err(Error::refused(
        "prompt",
        format!("has {places} places of pictures ({PICTURE}), and no picture is given"),
    ))
}
