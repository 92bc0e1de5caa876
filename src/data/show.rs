//! Pictures of samples as a model sees them: how many tokens each has, and which they are.

use super::encode::{Encoder, Explained, Fault};
use super::picture::Shown;
use super::sample::Sample;
use super::turns::overlapping;
use super::{Example, PicturePlace, PictureSource};
use crate::text::{Expanded, PICTURE, PictureTokens, Piece};

impl Encoder {
    /// The pictures of a sample by their headers.
    pub(super) fn show(&self, sample: &Sample) -> Result<Vec<Shown>, Fault> {
        if sample.pictures.is_empty() {
            return Ok(Vec::new());
        }
        let Some(tokens) = &self.pictures else {
            let what = "has pictures, but nothing here sees them: the model has no vision part, or this command reads \
                        text alone";
            return Err(what.into());
        };
        let look = |source| look(source, tokens).map_err(Fault::Picture);
        sample.pictures.iter().map(look).collect()
    }

    /// A text with the rows of its pictures written out.
    pub(super) fn expanded(&self, text: &str, shown: &[Shown]) -> Explained<Expanded> {
        match &self.pictures {
            Some(tokens) if !shown.is_empty() => {
                let grids: Vec<[usize; 2]> = shown.iter().map(|shown| shown.grid).collect();
                tokens.written.expand_placed(text, &grids, tokens.rows).map_err(|error| error.to_string())
            }
            _ => Ok(Expanded::plain(text.into())),
        }
    }

    /// An example with the places of its pictures, whose tokens are not trained. Its pieces begin `before` tokens behind
    /// its start.
    pub(super) fn placed(
        &self,
        mut example: Example,
        before: usize,
        pieces: &[Piece],
        expanded: &Expanded,
        shown: &[Shown],
    ) -> Explained<Example> {
        let Some(tokens) = &self.pictures else { return Ok(example) };
        for (shown, bytes) in shown.iter().zip(&expanded.pictures) {
            let span = overlapping(pieces, bytes);
            let span = span.start + before..span.end + before;
            example.trained[span.clone()].fill(false);
            let Shown { source, grid, tile } = shown;
            example.pictures.push(PicturePlace {
                source: source.clone(),
                span,
                grid: *grid,
                tile: *tile,
                features: None,
            });
        }
        let wanted: usize = example.pictures.iter().map(|picture| picture.tiles() * tokens.rows).sum();
        let found = example.ids.iter().filter(|id| **id == tokens.token).count();
        if found != wanted {
            return Err(format!(
                "has {found} tokens '{PICTURE}' where its {} pictures have {wanted} rows",
                example.pictures.len()
            ));
        }
        Ok(example)
    }
}

/// The tiles of a picture by its header.
#[cfg(feature = "images")]
fn look(source: &PictureSource, tokens: &PictureTokens) -> Explained<Shown> {
    let file = source.open(&crate::picture::Limits::default()).map_err(|error| error.to_string())?;
    let about = file.about();
    let layout = tokens.processor.layout(about.height, about.width);
    let layout = layout.map_err(|error| format!("{source}: {error}"))?;
    let grid = [layout.rows, layout.columns];
    Ok(Shown { source: source.clone(), grid, tile: [layout.height, layout.width] })
}

#[cfg(not(feature = "images"))]
fn look(source: &PictureSource, _: &PictureTokens) -> Explained<Shown> {
    Err(format!("{source}: this program was built without pictures (feature 'images')"))
}
