//! What a model does to a picture before its tower reads it.

use super::color::Alpha;
use super::filter::Filter;
use super::size::{Size, bounded, check_aspect, longest_edge, shortest_edge, whole_tiles};
use super::{Picture, Tiles};
use crate::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// The size that a picture is given. Quotients are cut off to integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Fit {
    /// The shorter side gets the length `edge`, the other one `edge * long / short`. CLIP.
    Shortest { edge: usize },
    /// This height and width, whatever the aspect. SigLIP.
    Exact(Size),
    /// The longer side gets the length `longest`, the other one follows and is even; then both sides go up to multiples of
    /// `tile`, and the picture is cut. The whole picture in the size of a tile is the last. Without `split` it is the only
    /// one. Idefics3 and SmolVLM.
    Tiles { longest: usize, tile: usize, split: bool },
}

/// The preprocessing of a model: a plain description, as it is stored with an adapter.
///
/// In this order: `alpha`, `pad`, `fit` with `filter`, `crop`, then values `(byte * rescale - mean) / std` for each channel,
/// where the product is made in f64 and rounded to f32, and the rest is f32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Processor {
    pub alpha: Alpha,
    /// Makes the picture a square first, with this colour around it: an odd pixel goes right or below. LLaVA-1.5.
    pub pad: Option<[u8; 3]>,
    pub fit: Fit,
    pub filter: Filter,
    /// The middle of the picture, from `floor((size - crop) / 2)` on; black where it is smaller than that.
    pub crop: Option<Size>,
    pub rescale: f64,
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

impl Processor {
    /// Its fields, as an adapter that was trained with it stores them.
    pub fn fields(&self) -> Map<String, Value> {
        // By way of text: it keeps an f32 such as 0.1 as it is written.
        let text = serde_json::to_string(self).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// The tiles of a picture, `[N, height, width, 3]` bytes.
    ///
    /// # Errors
    /// The picture would become too large on its way, or its sides are too unequal for tiles.
    pub fn tiles(&self, picture: &Picture) -> Result<Tiles> {
        let padded = self.pad.map(|color| square(picture, color)).transpose()?;
        let picture = padded.as_ref().unwrap_or(picture);
        let width = picture.width();
        let height = picture.height();
        match self.fit {
            Fit::Shortest { edge } => {
                Ok(Tiles::whole(self.cropped(picture, shortest_edge(Size { height, width }, edge))?))
            }
            Fit::Exact(size) => Ok(Tiles::whole(self.cropped(picture, size)?)),
            Fit::Tiles { longest, tile, split } => self.cut(picture, longest, tile, split),
        }
    }

    /// The picture in another size, cropped. What is cropped off is not computed.
    fn cropped(&self, picture: &Picture, size: Size) -> Result<Picture> {
        let crop = self.crop.unwrap_or(size);
        bounded(crop)?;
        let kept = |length: usize, crop: usize| {
            let start = length.saturating_sub(crop) / 2;
            start..start + crop.min(length)
        };
        let columns = kept(size.width, crop.width);
        let rows = kept(size.height, crop.height);
        bounded(Size { height: picture.height(), width: columns.len() })?;
        // A smaller picture has the odd pixel of black at its left and above.
        let before = |length: usize, crop: usize| crop.saturating_sub(length).div_ceil(2);
        let left = before(size.width, crop.width);
        let top = before(size.height, crop.height);
        let part = picture.resized_part((size.width, size.height), columns, rows, self.filter);
        if part.width() == crop.width && part.height() == crop.height {
            return Ok(part);
        }
        let mut whole = Picture::filled(crop.width, crop.height, [0; 3])?;
        whole.paste(&part, left, top);
        Ok(whole)
    }

    fn cut(&self, picture: &Picture, longest: usize, tile: usize, split: bool) -> Result<Tiles> {
        let width = picture.width();
        let height = picture.height();
        check_aspect(Size { height, width })?;
        let size = longest_edge(Size { height, width }, longest);
        let picture = picture.resized(size.width, size.height, self.filter);
        if !split {
            return Ok(Tiles::whole(picture.resized(tile, tile, self.filter)));
        }
        let size = whole_tiles(size, tile);
        bounded(size)?;
        let picture = picture.resized(size.width, size.height, self.filter);
        if size.width <= tile && size.height <= tile {
            return Ok(Tiles::whole(picture));
        }
        // Of the whole picture transformers leaves the filter at its default.
        let whole = picture.resized(tile, tile, Filter::Lanczos);
        Ok(Tiles::cut(&picture, tile, &whole))
    }

    /// The values that a tower reads, `[N, 3, height, width]`: channels apart, red first.
    pub fn values(&self, tiles: &Tiles) -> Vec<f32> {
        let tables: [[f32; 256]; 3] = std::array::from_fn(|c| {
            let value = |byte: usize| ((byte as f64 * self.rescale) as f32 - self.mean[c]) / self.std[c];
            std::array::from_fn(value)
        });
        let mut values = Vec::with_capacity(tiles.count() * 3 * tiles.height() * tiles.width());
        for tile in tiles.each() {
            for (channel, table) in tables.iter().enumerate() {
                values.extend(tile[channel..].iter().step_by(3).map(|&byte| table[usize::from(byte)]));
            }
        }
        values
    }
}

/// The picture in the middle of a square.
fn square(picture: &Picture, color: [u8; 3]) -> Result<Picture> {
    let side = picture.width().max(picture.height());
    bounded(Size { height: side, width: side })?;
    let mut square = Picture::filled(side, side, color)?;
    square.paste(picture, (side - picture.width()) / 2, (side - picture.height()) / 2);
    Ok(square)
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.alpha {
            Alpha::Drop => write!(f, "alpha dropped")?,
            Alpha::White => write!(f, "put on white")?,
        }
        if let Some([red, green, blue]) = self.pad {
            write!(f, ", padded to a square with ({red}, {green}, {blue})")?;
        }
        match self.fit {
            Fit::Shortest { edge } => write!(f, ", shortest edge {edge}")?,
            Fit::Exact(size) => write!(f, ", resized to {size}")?,
            Fit::Tiles { longest, tile, split: true } => {
                write!(f, ", longest edge {longest}, tiles of {tile} x {tile} and the whole picture")?
            }
            Fit::Tiles { longest, tile, .. } => write!(f, ", longest edge {longest}, then {tile} x {tile}")?,
        }
        write!(f, " ({})", self.filter)?;
        if let Some(crop) = self.crop {
            write!(f, ", cropped to {crop}")?;
        }
        write!(f, ", (byte * {} - {:?}) / {:?}", self.rescale, self.mean, self.std)
    }
}
