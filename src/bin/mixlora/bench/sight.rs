//! A picture for benchmarks, and the vision part that sees it.

use super::{BaseArgs, usage};
use crate::Failure;
use crate::model_path::model_path;
use mixlora::bench::Pictured;
use mixlora::model::Model;
use mixlora::model::vision::{TowerShape, VisionModel};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(clap::Args)]
pub struct SightArgs {
    /// A picture for a model that sees.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// The vision part of a model that has none of its own: a GGUF file (mmproj), or a directory with a vision tower alone.
    /// Without --image its picture is made up, in the size that the tower is made for.
    #[arg(long, visible_alias = "mmproj", value_name = "PATH", value_parser = model_path(), conflicts_with = "tower")]
    vision: Option<PathBuf>,
    /// A vision part of random weights with the sizes of a published tower, such as clip-b16, and a made-up picture;
    /// siglip-b16-512 beside smollm2-135m is SmolVLM-256M.
    #[arg(long, value_name = "NAME", conflicts_with = "image")]
    tower: Option<String>,
}

impl SightArgs {
    /// The picture for a model; none where none is asked for. The projector is trained where `trained`, or where it is new.
    pub fn open(
        &self,
        base: &BaseArgs,
        model: &Arc<Model>,
        trained: bool,
    ) -> Result<Option<Pictured>, Failure> {
        if let Some(name) = &self.tower {
            let shape = TowerShape::parse(name).map_err(|error| usage("--tower", &error))?;
            let vision = VisionModel::of_shape(&shape, model, trained)?;
            return Ok(Some(Pictured::made_up(Arc::new(vision))?));
        }
        if self.image.is_none() && self.vision.is_none() {
            return Ok(None);
        }
        #[cfg(all(feature = "tokenizer", feature = "images"))]
        return self.of_files(base, model, trained).map(Some);
        #[cfg(not(all(feature = "tokenizer", feature = "images")))]
        {
            let _ = base;
            let what = "--image and --vision take a program with the features 'tokenizer' and 'images'";
            Err(Failure::Usage(what.into()))
        }
    }

    #[cfg(all(feature = "tokenizer", feature = "images"))]
    fn of_files(&self, base: &BaseArgs, model: &Arc<Model>, trained: bool) -> Result<Pictured, Failure> {
        use crate::model_args::{no_vision_part, open_picture};
        use mixlora::model::LoadOptions;
        use mixlora::model::vision::VisionPlace;
        use mixlora::text::Sight;
        use mixlora::train::TextOptions;
        use mixlora::{Stream, Tensor};

        let Some(path) = &base.model else {
            let what = "--image and --vision are for a --model of files; --tower is for a --shape";
            return Err(Failure::Usage(what.into()));
        };
        let text = TextOptions::default().open(Some(path), self.vision.as_deref())?;
        let place = VisionPlace::of(path, self.vision.as_deref())?;
        let trained = trained || matches!(place, Some(VisionPlace::Tower(_)));
        let open = |place: VisionPlace| {
            Sight::open(&place, model, &text.tokenizer, &LoadOptions::default(), trained, Stream::new(0))
        };
        let sight = place.map_or(Ok(None), open)?.ok_or_else(|| no_vision_part(path))?;
        let Some(image) = &self.image else { return Ok(Pictured::made_up(sight.vision)?) };
        let seen = open_picture(&sight, image)?;
        let [tiles, height, width] = seen.dims;
        let pixels = Tensor::from_f32(model.device(), &[tiles, 3, height, width], &seen.values)?;
        let vision = sight.vision.clone();
        let image = image.clone();
        let prepare = move || sight.open_picture(&image).map(drop);
        Ok(Pictured { vision, pixels, prepare: Some(Box::new(prepare)) })
    }
}
