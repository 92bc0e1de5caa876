//! Pictures of examples as a frozen tower leaves them: each is looked at once, before the first step.

use super::TextOptions;
use super::features::kept_features;
use crate::data::{Dataset, FeatureValues, Features, PictureSource};
use crate::io::{KeptValues, cache};
use crate::nn::Pass;
use crate::routing::Units;
use crate::tape::inside;
use crate::text::Sight;
use crate::{Error, Result, Tensor, no_grad};
use std::collections::HashMap;

/// How many pictures a tower has looked at, and what was known of the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Looked {
    /// Pictures that went through the tower.
    pub computed: usize,
    /// Pictures whose features were in files of an earlier run.
    pub found: usize,
    /// Bytes of features in memory, and in files.
    pub memory: u64,
    pub files: u64,
    /// What is to be said of it.
    pub notes: Vec<String>,
}

/// A picture of the sets.
enum Known {
    Memory(Features),
    /// In a file that was not whole yet; the key, and the checksum of the picture's file.
    File(String, u32),
}

/// Shows every picture of the sets to the tower; a picture of several examples once. Features stay in memory up to the
/// default of [`TextOptions`], and more go to files.
///
/// # Errors
/// Those of [`look_at_pictures_with`].
pub fn look_at_pictures<'a>(sets: impl IntoIterator<Item = &'a mut Dataset>, sight: &Sight) -> Result<()> {
    look_at_pictures_with(sets, sight, &TextOptions::default()).map(drop)
}

/// The same with the memory and the folder that options name. With a folder all features are written there, and pictures that
/// are known in it are not shown to the tower again; without one only what is above the memory, in the user's cache folder.
///
/// # Errors
/// A picture cannot be read (its sample's line is named), or features cannot be written.
pub fn look_at_pictures_with<'a>(
    sets: impl IntoIterator<Item = &'a mut Dataset>,
    sight: &Sight,
    options: &TextOptions,
) -> Result<Looked> {
    let most = options.feature_bytes()?;
    let mut sets: Vec<&mut Dataset> = sets.into_iter().collect();
    let mut files = options.feature_cache.as_deref().map(|dir| kept_features(dir, sight)).transpose()?;
    let mut known: HashMap<PictureSource, Known> = HashMap::new();
    let mut looked = Looked::default();
    for set in &sets {
        for (example, line) in set.examples.iter().zip(&set.lines) {
            for place in &example.pictures {
                if known.contains_key(&place.source) {
                    continue;
                }
                let at = |error: Error| Error::refused(format!("line {line}"), error.to_string());
                let picture = Opened::open(&place.source).map_err(at)?;
                let entry = one(&picture, sight, most, &mut files, &mut looked, &at)?;
                known.insert(place.source.clone(), entry);
            }
        }
    }
    if let Some(files) = &mut files {
        files.finish()?;
    }
    for place in sets.iter_mut().flat_map(|set| &mut set.examples).flat_map(|example| &mut example.pictures) {
        place.features = match known.get(&place.source) {
            Some(Known::Memory(features)) => Some(features.clone()),
            Some(Known::File(key, file)) => {
                let found = files.as_mut().and_then(|files| files.get(key));
                let (dims, values) = found.ok_or_else(|| {
                    Error::refused(
                        "features",
                        format!("of {} were written and cannot be read back", place.source),
                    )
                })?;
                Some(Features {
                    vision: sight.vision.clone(),
                    dims,
                    values: FeatureValues::File(values),
                    file: *file,
                })
            }
            None => None,
        };
    }
    looked.say(files, options.feature_cache.is_some());
    Ok(looked)
}

/// What becomes of the features of one picture.
fn one(
    picture: &Opened,
    sight: &Sight,
    most: u64,
    files: &mut Option<KeptValues>,
    looked: &mut Looked,
    at: &dyn Fn(Error) -> Error,
) -> Result<Known> {
    let file = picture.checksum();
    let key = picture.key();
    let kept = |dims, values| Known::Memory(Features { vision: sight.vision.clone(), dims, values, file });
    if let Some((dims, values)) = files.as_mut().and_then(|files| files.get(&key)) {
        looked.found += 1;
        let bytes = 4 * values.len() as u64;
        if looked.memory + bytes <= most {
            looked.memory += bytes;
            return Ok(kept(dims, FeatureValues::Memory(values.to_vec().into())));
        }
        looked.files += bytes;
        return Ok(kept(dims, FeatureValues::File(values)));
    }
    let (dims, values) = picture.look(sight).map_err(at)?;
    looked.computed += 1;
    let bytes = 4 * values.len() as u64;
    let fits = looked.memory + bytes <= most;
    if !fits && files.is_none() {
        *files = Some(kept_features(&cache::folder(None)?.join("features"), sight)?);
    }
    if let Some(files) = files {
        files.put(&key, dims, &values)?;
    }
    if fits {
        looked.memory += bytes;
        Ok(kept(dims, FeatureValues::Memory(values.into())))
    } else {
        looked.files += bytes;
        Ok(Known::File(key, file))
    }
}

impl Looked {
    /// Notes about files, and where features are.
    fn say(&mut self, files: Option<KeptValues>, cached: bool) {
        let Some(files) = files else { return };
        let mib = |bytes: u64| bytes as f64 / (1u64 << 20) as f64;
        if self.files > 0 || cached {
            self.notes.push(format!(
                "features: {} pictures known, {} shown to the tower; {:.1} MiB in memory, {:.1} MiB in files of {}",
                self.found,
                self.computed,
                mib(self.memory),
                mib(self.files),
                files.dir().display()
            ));
        }
        self.notes.extend(files.notes);
    }
}

/// A picture's file.
struct Opened {
    #[cfg(feature = "images")]
    file: crate::picture::PictureFile,
}

#[cfg(feature = "images")]
impl Opened {
    fn open(source: &PictureSource) -> Result<Self> {
        Ok(Opened { file: source.open(&crate::picture::Limits::default())? })
    }

    fn checksum(&self) -> u32 {
        self.file.checksum()
    }

    /// What tells it from other files.
    fn key(&self) -> String {
        self.file.key()
    }

    /// What the tower makes of it: tiles, rows of each and values of a row.
    fn look(&self, sight: &Sight) -> Result<([usize; 3], Vec<f32>)> {
        let decoded = self.file.decode(sight.processor.alpha)?;
        let seen = sight.look(&decoded.picture)?;
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
        Ok(([tiles, rows, d], features.to_f32()?))
    }
}

#[cfg(not(feature = "images"))]
impl Opened {
    fn open(source: &PictureSource) -> Result<Self> {
        Err(Error::refused(
            source.to_string(),
            "is not read: this program was built without the feature 'images'",
        ))
    }

    fn checksum(&self) -> u32 {
        0
    }

    fn key(&self) -> String {
        String::new()
    }

    fn look(&self, _: &Sight) -> Result<([usize; 3], Vec<f32>)> {
        Err(Error::refused("picture", "is not read"))
    }
}
