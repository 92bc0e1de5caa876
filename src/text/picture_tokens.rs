//! How pictures stand among the tokens of a model, known from its settings alone.

use super::{PICTURE, PictureText, Tokenizer};
use crate::io::read_json;
use crate::model::ModelPlace;
use crate::model::vision::VisionConfig;
use crate::{Error, Result};
use serde_json::Value;
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
    /// Those of the model at a path; none where it is a decoder alone, or a tokenizer without a `config.json`.
    ///
    /// # Errors
    /// The vision part or its processor is of a kind that is not read, or a file is damaged.
    pub fn of_model(path: &Path) -> Result<Option<Self>> {
        let ModelPlace::Folder(folder) = ModelPlace::of(path)? else { return Ok(None) };
        let file = folder.join("config.json");
        if !file.is_file() {
            return Ok(None);
        }
        let all: Value = read_json(&file)?;
        // The width of the decoder is no matter of its tokens.
        let config = VisionConfig::from_json(&all, 0);
        let Some(config) = config.map_err(|error| Error::file(&file, error.to_string()))? else {
            return Ok(None);
        };
        Ok(Some(PictureTokens {
            written: PictureText::of(&config),
            rows: config.rows(),
            token: config.image_token,
            #[cfg(feature = "images")]
            processor: Processor::of_model(&folder)?,
        }))
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
