//! What a model sees: from pictures and a rendered prompt to tokens, and to what enters the decoder's first layer.

use super::{PictureText, PictureTokens, Tokenizer};
use crate::adapter::{Bank, VisionPart};
use crate::model::vision::{PictureFeatures, VisionModel, VisionPlace};
use crate::model::{LoadOptions, Model};
use crate::nn::Pass;
use crate::rng::Stream;
use crate::routing::Units;
use crate::tape::inside;
use crate::{Error, Result, Tensor, no_grad};
use std::path::Path;
use std::sync::Arc;

#[cfg(feature = "images")]
use crate::picture::{Limits, Picture, PictureFile, Processor};

/// The vision part of a model, with what its processor does to pictures.
pub struct Sight {
    pub vision: Arc<VisionModel>,
    #[cfg(feature = "images")]
    pub processor: Processor,
}

/// A picture as the tower reads it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Rows and columns of its tiles, behind which the whole picture stands; 0 where it is not cut.
    pub grid: [usize; 2],
    /// Number of tiles, their height and their width.
    pub dims: [usize; 3],
    /// `[N, 3, height, width]`
    pub values: Vec<f32>,
}

impl Sight {
    /// The vision part at a place, of the decoder `model`; none where the model is a decoder alone. The tokenizer has the
    /// token of pictures. The projector can be trained where `trained`, and `seed` is that of a new one.
    ///
    /// # Errors
    /// The vision part or its processor is of a kind that is not read or does not fit the model, a file is damaged, or the
    /// tokenizer has no token of pictures.
    pub fn open(
        place: &VisionPlace,
        model: &Model,
        tokenizer: &Tokenizer,
        options: &LoadOptions,
        trained: bool,
        seed: Stream,
    ) -> Result<Option<Self>> {
        let token = PictureTokens::token_of(tokenizer);
        let Some(vision) = place.open(model, token, options, trained, seed)? else { return Ok(None) };
        let sight = Sight {
            #[cfg(feature = "images")]
            processor: place.processor()?,
            vision: Arc::new(vision),
        };
        sight.check(tokenizer)?;
        Ok(Some(sight))
    }

    /// What an adapter that is trained with it remembers of it.
    pub fn part(&self) -> VisionPart {
        #[cfg(feature = "images")]
        let processor = Some(self.processor.fields());
        #[cfg(not(feature = "images"))]
        let processor = None;
        VisionPart::of(&self.vision, processor)
    }

    /// Takes what adapters were trained with: the projector of the one that has one becomes that of the model. Adapters of
    /// another tower or with other preparation of pictures are taken only where `force`.
    ///
    /// # Errors
    /// An adapter was trained with another vision part, or several have a projector of their own.
    pub fn take_from(&self, adapters: &Bank, force: bool) -> Result<()> {
        let here = self.part();
        let mut taken = false;
        for there in adapters.adapters().iter().filter_map(|(adapter, _)| adapter.vision()) {
            if !force {
                there.check(&here)?;
            }
            if taken && !there.projector().is_empty() {
                let what =
                    "several have a projector of their own, and a model has one: give only one of them";
                return Err(Error::refused("adapter", what));
            }
            taken |= !there.projector().is_empty();
            there.put_into(&self.vision)?;
        }
        Ok(())
    }

    /// A picture file as the tower reads it, and what is to be said of the file.
    ///
    /// # Errors
    /// It is no picture of a kind that is read, too large, or the program was built without the feature `images`.
    pub fn open_picture(&self, path: &Path) -> Result<(Seen, Vec<String>)> {
        #[cfg(feature = "images")]
        {
            let decoded = PictureFile::open(path, &Limits::default())?.decode(self.processor.alpha)?;
            Ok((self.look(&decoded.picture)?, decoded.notes))
        }
        #[cfg(not(feature = "images"))]
        Err(Error::file(path, "no picture is read: this program was built without the feature 'images'"))
    }

    /// A picture as the tower reads it.
    ///
    /// # Errors
    /// Its sides are too unequal for the processor.
    #[cfg(feature = "images")]
    pub fn look(&self, picture: &Picture) -> Result<Seen> {
        let tiles = self.processor.tiles(picture)?;
        Ok(Seen {
            grid: [tiles.rows(), tiles.columns()],
            dims: [tiles.count(), tiles.height(), tiles.width()],
            values: self.processor.values(&tiles),
        })
    }

    /// A rendered prompt with the rows of its pictures written out.
    ///
    /// # Errors
    /// The prompt has not as many places of pictures.
    pub fn expand(&self, prompt: &str, pictures: &[Seen]) -> Result<String> {
        let grids: Vec<[usize; 2]> = pictures.iter().map(|seen| seen.grid).collect();
        let config = self.vision.config();
        PictureText::of(config).expand(prompt, &grids, config.rows())
    }

    /// How its pictures stand among tokens.
    pub fn tokens(&self) -> PictureTokens {
        let config = self.vision.config();
        PictureTokens {
            written: PictureText::of(config),
            rows: config.rows(),
            token: config.image_token,
            #[cfg(feature = "images")]
            processor: self.processor.clone(),
        }
    }

    /// Refuses a tokenizer that does not know the token of pictures.
    ///
    /// # Errors
    /// The tokenizer has another token there.
    pub fn check(&self, tokenizer: &Tokenizer) -> Result<()> {
        self.tokens().check(tokenizer)
    }

    /// What the tower makes of the pictures that stand in tokens, the last of which is the last of `pictures`. None where
    /// no token is one of a picture.
    ///
    /// # Errors
    /// The tiles of the pictures have different sizes.
    pub fn features(&self, ids: &[u32], pictures: &[Seen]) -> Result<Option<PictureFeatures>> {
        let each = self.vision.config().rows();
        let mut wanted = ids.iter().filter(|&&id| id == self.vision.config().image_token).count();
        let mut first = pictures.len();
        while wanted > 0 && first > 0 {
            first -= 1;
            wanted = wanted.saturating_sub(each * pictures[first].dims[0]);
        }
        if first == pictures.len() {
            return Ok(None);
        }
        let device = self.vision.tower().device();
        let pass = Pass::new(Units::tokens(0));
        let [_, height, width] = pictures[first].dims;
        let mut values = Vec::new();
        let mut count = 0;
        for &Seen { dims: [tiles, h, w], values: ref new, .. } in &pictures[first..] {
            if [h, w] != [height, width] {
                return Err(Error::shape(
                    "pictures",
                    format!("{height} x {width} pixels"),
                    format!("{h} x {w}"),
                ));
            }
            values.extend_from_slice(new);
            count += tiles;
        }
        let pixels = Tensor::from_f32(device, &[count, 3, height, width], &values)?;
        let features = inside(device, || no_grad(|| self.vision.tower().forward(&pixels, &pass, None)))?;
        Ok(Some(PictureFeatures { vision: self.vision.clone(), features }))
    }
}
