//! Processors from the files of a model: `preprocessor_config.json`, or `processor_config.json` of newer programs.
//!
//! Files may leave out what is the default of their class, so that the defaults are part of the format.

use super::color::Alpha;
use super::filter::Filter;
use super::processor::{Fit, Processor};
use super::size::Size;
use crate::io::{GgufFile, read_json};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The largest side that a file may ask for.
const LONGEST: u64 = 16_384;

const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Classes of processors that are known and not built, and what they do.
const LATER: &[(&str, &str)] = &[
    ("LlavaNextImageProcessor", "LLaVA-NeXT's tiles of any resolution are not built yet"),
    ("LlavaOnevisionImageProcessor", "tiles of any resolution are not built yet"),
    ("Qwen2VLImageProcessor", "Qwen2-VL's pictures of any size are not built yet"),
    ("Qwen2_5_VLImageProcessor", "Qwen2.5-VL's pictures of any size are not built yet"),
    ("PixtralImageProcessor", "Pixtral's pictures of any size are not built yet"),
];

impl Processor {
    /// The processor of a model's directory, or of one of the two files by its path.
    ///
    /// # Errors
    /// There is no such file, its class is not supported (the error names it), or a value is not what it should be.
    pub fn of_model(path: &Path) -> Result<Self> {
        let (path, tree) = settings(path)?;
        Settings { path: &path, map: &tree }.processor()
    }

    /// What is done to pictures for the vision part of an open GGUF file (mmproj). Such files say sizes, mean and std
    /// alone: an MLP's pictures are padded to squares as in LLaVA-1.5, those of a pixel shuffle cut as in Idefics3.
    ///
    /// # Errors
    /// An entry is missing or not what it should be.
    pub fn of_gguf(file: &GgufFile) -> Result<Self> {
        let side = file.u32("clip.vision.image_size")?;
        let cut = file.get("clip.projector_type").is_some() && file.str("clip.projector_type")? == "idefics3";
        let mut settings = if cut {
            let key = "clip.vision.preproc_image_size";
            let longest = if file.get(key).is_some() { file.u32(key)? } else { 4 * side };
            json!({ "image_processor_type": "Idefics3ImageProcessor", "size": { "longest_edge": longest },
                    "max_image_size": { "longest_edge": side } })
        } else {
            json!({ "image_processor_type": "LlavaImageProcessor", "do_pad": true,
                    "size": { "shortest_edge": side }, "crop_size": side })
        };
        for field in ["image_mean", "image_std"] {
            let key = format!("clip.vision.{field}");
            if file.get(&key).is_some() {
                settings[field] = json!(file.f32s(&key)?);
            }
        }
        Self::of_settings(file.path(), settings.as_object().unwrap_or(&Map::new()))
    }

    /// The processor of settings that were read from a file; `path` stands in messages.
    ///
    /// # Errors
    /// As [`of_model`](Self::of_model).
    pub fn of_settings(path: &Path, settings: &Map<String, Value>) -> Result<Self> {
        Settings { path, map: settings }.processor()
    }
}

/// The settings of the image processor, and the file that they are in.
fn settings(path: &Path) -> Result<(PathBuf, Map<String, Value>)> {
    if !path.is_dir() {
        let tree: Map<String, Value> = read_json(path)?;
        return Ok((path.to_path_buf(), inner(&tree).unwrap_or(tree)));
    }
    let own = path.join("preprocessor_config.json");
    if own.exists() {
        let tree: Map<String, Value> = read_json(&own)?;
        return Ok((own, inner(&tree).unwrap_or(tree)));
    }
    let all = path.join("processor_config.json");
    if all.exists()
        && let Some(inner) = inner(&read_json(&all)?)
    {
        return Ok((all, inner));
    }
    let what = "has no preprocessor_config.json, and no processor_config.json with an 'image_processor': how its pictures \
                are prepared is not known";
    Err(Error::file(path, what))
}

fn inner(tree: &Map<String, Value>) -> Option<Map<String, Value>> {
    tree.get("image_processor")?.as_object().cloned()
}

/// Settings, read by name with errors that say where they are.
struct Settings<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl Settings<'_> {
    fn processor(&self) -> Result<Processor> {
        let class = ["image_processor_type", "feature_extractor_type"].iter().find_map(|key| self.value(key));
        let Some(class) = class.and_then(Value::as_str) else {
            return self
                .refuse("image_processor_type", "is missing: the class of the processor is not known");
        };
        // Classes that compute the same with other code.
        let name =
            ["Fast", "Pil"].iter().fold(class, |name, ending| name.strip_suffix(ending).unwrap_or(name));
        match name {
            "CLIPImageProcessor" | "CLIPFeatureExtractor" | "LlavaImageProcessor" => self.clip(name),
            "SiglipImageProcessor" => self.siglip(),
            "Idefics3ImageProcessor" | "SmolVLMImageProcessor" => self.idefics3(),
            _ => {
                let later = LATER.iter().find(|(known, _)| *known == name).map(|(_, what)| *what);
                let known = "those of CLIP, SigLIP, LLaVA, Idefics3 and SmolVLM are";
                self.refuse(
                    "image_processor_type",
                    &format!("{class} is not supported: {}", later.unwrap_or(known)),
                )
            }
        }
    }

    fn clip(&self, class: &str) -> Result<Processor> {
        let square = |edge| Size { height: edge, width: edge };
        let fit = match self.value("size") {
            None => Fit::Shortest { edge: 224 },
            Some(Value::Number(_)) => Fit::Shortest { edge: self.side("size", "")? },
            Some(size) if size.get("shortest_edge").is_some() => {
                Fit::Shortest { edge: self.side("size", "shortest_edge")? }
            }
            Some(_) => Fit::Exact(self.size("size")?),
        };
        let crop = match self.value("crop_size") {
            None => square(224),
            Some(Value::Number(_)) => square(self.side("crop_size", "")?),
            Some(_) => self.size("crop_size")?,
        };
        let mean = self.numbers("image_mean", CLIP_MEAN)?;
        let pads = class == "LlavaImageProcessor" && self.flag("do_pad", false)?;
        let crops = self.flag("do_center_crop", true)?;
        let base = self.base(fit, Filter::Bicubic, mean, CLIP_STD)?;
        Ok(Processor {
            pad: pads.then(|| mean.map(|mean| (mean * 255.0) as u8)),
            crop: crops.then_some(crop),
            ..base
        })
    }

    fn siglip(&self) -> Result<Processor> {
        let size = match self.value("size") {
            None => Size { height: 224, width: 224 },
            Some(Value::Number(_)) => {
                let edge = self.side("size", "")?;
                Size { height: edge, width: edge }
            }
            Some(_) => self.size("size")?,
        };
        let mean = self.numbers("image_mean", [0.5; 3])?;
        self.base(Fit::Exact(size), Filter::Bicubic, mean, [0.5; 3])
    }

    fn idefics3(&self) -> Result<Processor> {
        let edge = |name: &str, usual: usize| match self.value(name) {
            None => Ok(usual),
            Some(_) => self.side(name, "longest_edge"),
        };
        let longest = edge("size", 4 * 364)?;
        let tile = edge("max_image_size", 364)?;
        let split = self.flag("do_image_splitting", true)?;
        let mean = self.numbers("image_mean", [0.5; 3])?;
        let base = self.base(Fit::Tiles { longest, tile, split }, Filter::Lanczos, mean, [0.5; 3])?;
        Ok(Processor { alpha: Alpha::White, ..base })
    }

    /// What all classes have.
    fn base(&self, fit: Fit, filter: Filter, mean: [f64; 3], std: [f64; 3]) -> Result<Processor> {
        if !self.flag("do_resize", true)? {
            return self.refuse("do_resize", "is false: pictures of their own size are not supported");
        }
        let filter = match self.value("resample") {
            None => filter,
            Some(value) => self.filter(value)?,
        };
        let normalized = self.flag("do_normalize", true)?;
        let std = self.numbers("image_std", std)?;
        if normalized && std.contains(&0.0) {
            return self.refuse("image_std", "has a zero");
        }
        let rescale = match self.value("rescale_factor") {
            None => 1.0 / 255.0,
            Some(value) => match value.as_f64().filter(|factor| *factor > 0.0) {
                Some(factor) => factor,
                None => {
                    return self.refuse("rescale_factor", &format!("is {value}, must be a number above 0"));
                }
            },
        };
        Ok(Processor {
            alpha: Alpha::Drop,
            pad: None,
            fit,
            filter,
            crop: None,
            rescale: if self.flag("do_rescale", true)? { rescale } else { 1.0 },
            mean: if normalized { mean.map(|mean| mean as f32) } else { [0.0; 3] },
            std: if normalized { std.map(|std| std as f32) } else { [1.0; 3] },
        })
    }

    fn filter(&self, value: &Value) -> Result<Filter> {
        let by_number = value.as_u64().and_then(|number| Filter::ALL.get(usize::try_from(number).ok()?));
        let by_name = || Filter::ALL.iter().find(|filter| value.as_str() == Some(filter.name()));
        match by_number.or_else(by_name) {
            Some(filter) => Ok(*filter),
            None => {
                let names: Vec<&str> = Filter::ALL.iter().map(|filter| filter.name()).collect();
                self.refuse("resample", &format!("is {value}, must be 0 to 5: {}", names.join(", ")))
            }
        }
    }

    /// A value; null counts as absent.
    fn value(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn flag(&self, name: &str, usual: bool) -> Result<bool> {
        match self.value(name) {
            None => Ok(usual),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => self.refuse(name, &format!("is {value}, must be true or false")),
        }
    }

    /// A side of a size, or the value itself.
    fn side(&self, name: &str, part: &str) -> Result<usize> {
        let value = self.value(name);
        let value = if part.is_empty() { value } else { value.and_then(|value| value.get(part)) };
        let place = if part.is_empty() { name.to_string() } else { format!("{name}.{part}") };
        match value.and_then(Value::as_u64).filter(|side| (1..=LONGEST).contains(side)) {
            Some(side) => Ok(side as usize),
            None => {
                let found = value.map_or("missing".to_string(), Value::to_string);
                self.refuse(&place, &format!("is {found}, must be an integer from 1 to {LONGEST}"))
            }
        }
    }

    fn size(&self, name: &str) -> Result<Size> {
        Ok(Size { height: self.side(name, "height")?, width: self.side(name, "width")? })
    }

    /// Three finite numbers, or one for all three.
    fn numbers(&self, name: &str, usual: [f64; 3]) -> Result<[f64; 3]> {
        let Some(value) = self.value(name) else { return Ok(usual) };
        let one = value.as_f64().map(|number| [number; 3]);
        let list = || {
            let numbers: Option<Vec<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
            numbers?.try_into().ok()
        };
        match one.or_else(list).filter(|numbers: &[f64; 3]| numbers.iter().all(|number| number.abs() < 1e6)) {
            Some(numbers) => Ok(numbers),
            None => self.refuse(name, &format!("is {value}, must be three numbers")),
        }
    }

    fn refuse<T>(&self, name: &str, what: &str) -> Result<T> {
        Err(Error::file(self.path, format!("'{name}': {what}")))
    }
}
