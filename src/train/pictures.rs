//! Pictures of examples as a frozen tower leaves them: each is looked at once, before the first step.

use crate::data::{Dataset, Features, PictureSource};
use crate::nn::Pass;
use crate::routing::Units;
use crate::tape::inside;
use crate::text::{Seen, Sight};
use crate::{Error, Result, Tensor, no_grad};
use std::collections::HashMap;

/// The most bytes of features that are kept.
const MOST: usize = 8 << 30;

/// Shows every picture of the sets to the tower; a picture of several examples once.
///
/// # Errors
/// A picture cannot be read (its sample's line is named), or the features of all take more than 8 GiB.
pub fn look_at_pictures<'a>(sets: impl IntoIterator<Item = &'a mut Dataset>, sight: &Sight) -> Result<()> {
    let mut seen: HashMap<PictureSource, Features> = HashMap::new();
    let mut bytes = 0;
    for set in sets {
        for (example, line) in set.examples.iter_mut().zip(&set.lines) {
            for place in &mut example.pictures {
                let features = match seen.get(&place.source) {
                    Some(features) => features.clone(),
                    None => {
                        let at = |error: Error| Error::refused(format!("line {line}"), error.to_string());
                        let features = look(&place.source, sight).map_err(at)?;
                        bytes += 4 * features.values.len();
                        if bytes > MOST {
                            let what = format!(
                                "have features of more than {} GiB, which are kept in memory: take fewer, or smaller tiles",
                                MOST >> 30
                            );
                            return Err(Error::refused("pictures", what));
                        }
                        seen.insert(place.source.clone(), features.clone());
                        features
                    }
                };
                place.features = Some(features);
            }
        }
    }
    Ok(())
}

/// A picture as the tower reads it, and the checksum of its file.
#[cfg(feature = "images")]
fn read(source: &PictureSource, sight: &Sight) -> Result<(Seen, u32)> {
    let file = source.open(&crate::picture::Limits::default())?;
    let decoded = file.decode(sight.processor.alpha)?;
    Ok((sight.look(&decoded.picture)?, file.checksum()))
}

/// A picture as the tower reads it, and the checksum of its file.
#[cfg(not(feature = "images"))]
fn read(source: &PictureSource, _: &Sight) -> Result<(Seen, u32)> {
    Err(Error::refused(
        source.to_string(),
        "is not read: this program was built without the feature 'images'",
    ))
}

/// What the tower makes of a picture.
fn look(source: &PictureSource, sight: &Sight) -> Result<Features> {
    let (seen, file) = read(source, sight)?;
    let tower = sight.vision.tower();
    let [tiles, height, width] = seen.dims;
    let features = inside(tower.device(), || {
        no_grad(|| {
            let pixels = Tensor::from_f32(tower.device(), &[tiles, 3, height, width], &seen.values)?;
            tower.forward(&pixels, &Pass::new(Units::tokens(0)), None)
        })
    })?;
    let [tiles, rows, d] = *features.dims() else {
        return Err(Error::shape("tower", "features [T, N, d]", features.shape()));
    };
    Ok(Features {
        vision: sight.vision.clone(),
        dims: [tiles, rows, d],
        values: features.to_f32()?.into(),
        file,
    })
}
