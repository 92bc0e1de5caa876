//! How pictures stand among the tokens of a model, known from its settings alone.

use super::{PICTURE, PictureText, Tokenizer};
use crate::model::vision::VisionPlace;
use crate::{Error, Result};
use std::path::Path;

#[cfg(feature = "images")]
use crate::picture::Processor;

/// What a model's settings say of the tokens that stand for pictures. No weight is needed for it.
#[derive(Debug, Clone, PartialEq)]
pub struct PictureTokens {
    /// How the rows of a picture are written.
    pub written: PictureText,
    /// Rows of a tile, each of which has a token.
    pub rows: usize,
    /// The token that stands for a row.
    pub token: u32,
    #[cfg(feature = "images")]
    pub processor: Processor,
}

impl PictureTokens {
    /// Those of the model at a path, or of the vision part `beside` it, whose pictures have the tokenizer's token; none where
    /// the model is a decoder alone, or a tokenizer without a `config.json`.
    ///
    /// # Errors
    /// The vision part or its processor is of a kind that is not read, or a file is damaged.
    pub fn of(model: &Path, beside: Option<&Path>, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let Some(place) = VisionPlace::of(model, beside)? else { return Ok(None) };
        // The width of the decoder is no matter of its tokens.
        let Some(config) = place.config(0, Self::token_of(tokenizer))? else { return Ok(None) };
        Ok(Some(PictureTokens {
            written: PictureText::of(&config),
            rows: config.rows(),
            token: config.image_token,
            #[cfg(feature = "images")]
            processor: place.processor()?,
        }))
    }

    /// The token of pictures in a tokenizer; no token is the largest number.
    pub(super) fn token_of(tokenizer: &Tokenizer) -> u32 {
        tokenizer.token_id(PICTURE).unwrap_or(u32::MAX)
    }

    /// Refuses a tokenizer that does not know the token of pictures.
    ///
    /// # Errors
    /// The tokenizer has another token there.
    pub fn check(&self, tokenizer: &Tokenizer) -> Result<()> {
        if tokenizer.token(self.token).as_deref() == Some(PICTURE) {
            return Ok(());
        }
        let what = format!(
            "has no token '{PICTURE}' with the number {}, as the model's config.json says",
            self.token
        );
        Err(Error::refused("tokenizer", what))
    }
}
