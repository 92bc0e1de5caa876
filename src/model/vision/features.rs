//! A model that sees: pictures to rows, and rows among tokens.

use super::{Projector, Tower, VisionConfig, VisionIdentity};
use crate::model::Model;
use crate::nn::Pass;
use crate::{Error, Result, Tensor};
use std::sync::Arc;

/// The vision part of a model: a frozen tower, and a projector into the decoder's width.
pub struct VisionModel {
    pub(super) config: VisionConfig,
    pub(super) tower: Tower,
    pub(super) projector: Projector,
    pub(super) identity: VisionIdentity,
}

impl VisionModel {
    /// Its configuration.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }
    /// Its tower.
    pub fn tower(&self) -> &Tower {
        &self.tower
    }
    /// Its projector.
    pub fn projector(&self) -> &Projector {
        &self.projector
    }
    /// What tells it from others, by its files.
    pub fn identity(&self) -> &VisionIdentity {
        &self.identity
    }

    /// The rows of pictures or tiles `[T, 3, H, W]`, `[T * rows, hidden_size]`. The pass is the tower's own.
    ///
    /// # Errors
    /// The pictures do not fit the tower.
    pub fn rows(&self, pixels: &Tensor, pass: &Pass) -> Result<Tensor> {
        self.projector.forward(&self.tower.forward(pixels, pass, None)?)
    }

    /// What enters the decoder's first layer for tokens of a batch `[B, S]`: rows of pictures in the places of the image
    /// token, in order, embedded tokens elsewhere. `rows` are those of all pictures, one after the other; the result is `[B, S, hidden_size]`.
    ///
    /// # Errors
    /// The number of image tokens is not that of the rows.
    pub fn splice(
        &self,
        model: &Model,
        ids: &[u32],
        [b, s]: [usize; 2],
        rows: Option<&Tensor>,
    ) -> Result<Tensor> {
        let device = model.device();
        let count = rows.map_or(0, |rows| rows.shape().rows());
        let places = ids.iter().filter(|&&id| id == self.config.image_token).count();
        if places != count {
            let found = format!("{places} image tokens for {count} rows of pictures");
            return Err(Error::shape("splice", "an image token for each row of the pictures", found));
        }
        // What stands in a picture's place is not looked at, and may be no token of the model.
        let of_text = |&id: &u32| if id == self.config.image_token { 0 } else { id };
        let shown: Vec<u32> = ids.iter().map(of_text).collect();
        let x = model.embed(&Tensor::from_u32(device, &[b, s], &shown)?)?;
        let Some(rows) = rows.filter(|_| count > 0) else { return Ok(x) };
        let mut next = 0;
        let mut index = Vec::with_capacity(ids.len());
        let mut seen = Vec::with_capacity(ids.len());
        for &id in ids {
            let picture = id == self.config.image_token;
            index.push(if picture { next } else { 0 });
            seen.push(f32::from(u8::from(picture)));
            next += u32::from(picture);
        }
        let d = x.shape().last();
        let column = |values: &[f32]| Tensor::from_f32(device, &[b * s, 1], values);
        let text: Vec<f32> = seen.iter().map(|seen| 1.0 - seen).collect();
        let index = Tensor::from_u32(device, &[b * s], &index)?;
        let pictures = rows.gather_rows(&index)?.mul(&column(&seen)?)?;
        x.reshape(&[b * s, d])?.mul(&column(&text)?)?.add(&pictures)?.reshape(&[b, s, d])
    }
}

/// Pictures that stand among the tokens of a pass, as a tower leaves them.
#[derive(Clone)]
pub struct PictureFeatures {
    pub vision: Arc<VisionModel>,
    /// What the tower makes of all tiles, in the order in which they stand among the tokens, `[T, N, d]`.
    pub features: Tensor,
}

impl PictureFeatures {
    /// Which tokens are in the place of a picture's row.
    pub fn rows_among(&self, ids: &[u32]) -> Vec<bool> {
        ids.iter().map(|&id| id == self.vision.config.image_token).collect()
    }

    /// What enters the decoder's first layer for tokens `[B, S]`: the pictures' rows among the embedded tokens,
    /// `[B, S, hidden_size]`, with the gradient of the projector and of what the pass has there.
    ///
    /// # Errors
    /// The image tokens are not as many as the rows of the pictures.
    pub fn embedded(&self, model: &Model, ids: &[u32], [b, s]: [usize; 2], pass: &Pass) -> Result<Tensor> {
        let [tiles, ..] = *self.features.dims() else {
            return Err(Error::shape("pictures", "features [T, N, d]", self.features.shape()));
        };
        let is_row = self.rows_among(ids);
        let rows = is_row.iter().filter(|is_row| **is_row).count();
        let each = (rows / tiles.max(1)).max(1);
        // The instance of each tile: that of its first row.
        let places = is_row.iter().enumerate().filter(|(_, is_row)| **is_row).map(|(place, _)| place);
        let instances: Vec<u32> = places.step_by(each).map(|place| (place / s.max(1)) as u32).collect();
        let rows = self.vision.projector.forward_in(&self.features, pass, model.sites().len(), &instances)?;
        self.vision.splice(model, ids, [b, s], Some(&rows))
    }
}
