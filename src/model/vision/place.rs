//! Where the vision part of a model is: in its own directory, or beside a decoder that has none.

use super::projector::{Full, Projector};
use super::{
    Feature, ProjectorKind, Tower, TowerConfig, VisionConfig, VisionFiles, VisionIdentity, VisionModel,
};
use crate::io::{Checkpoint, GgufFile, read_json};
use crate::model::{Activation, LoadOptions, Model, ModelPlace};
use crate::nn::Param;
#[cfg(feature = "images")]
use crate::picture::Processor;
use crate::rng::Stream;
use crate::{Device, Error, Result, Tensor};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Where the vision part of a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VisionPlace {
    /// In the directory of a model that sees: the model's own, or that of another one with the same decoder.
    Model(PathBuf),
    /// In a GGUF file beside that of the decoder (mmproj).
    Gguf(PathBuf),
    /// In a directory with a tower alone. The projector is a new one, to be trained: `mlp2x_gelu`, or the
    /// `mm_projector_type` that its `config.json` names.
    Tower(PathBuf),
}

impl VisionPlace {
    /// The vision part `beside` a model, or else its own; none for a model that is a GGUF file, or a tokenizer alone.
    ///
    /// # Errors
    /// A path is neither a model's nor that of a vision part.
    pub fn of(model: &Path, beside: Option<&Path>) -> Result<Option<Self>> {
        if let Some(beside) = beside {
            return match ModelPlace::of(beside)? {
                ModelPlace::Gguf(file) => Ok(Some(VisionPlace::Gguf(file))),
                ModelPlace::Folder(dir) => {
                    let config: Value = read_json(&dir.join("config.json"))?;
                    let sees = VisionConfig::is_described_by(&config);
                    Ok(Some(if sees { VisionPlace::Model(dir) } else { VisionPlace::Tower(dir) }))
                }
            };
        }
        match ModelPlace::of(model)? {
            ModelPlace::Folder(dir) if dir.join("config.json").is_file() => Ok(Some(VisionPlace::Model(dir))),
            _ => Ok(None),
        }
    }

    /// Its file or directory.
    pub fn path(&self) -> &Path {
        match self {
            VisionPlace::Model(path) | VisionPlace::Gguf(path) | VisionPlace::Tower(path) => path,
        }
    }

    /// Its description for a decoder with states of `width`; none where the model is a decoder alone. `image_token` stands
    /// for the rows of pictures where the files do not say which token does.
    ///
    /// # Errors
    /// It is of a kind that is not read, or a file is damaged.
    pub fn config(&self, width: usize, image_token: u32) -> Result<Option<VisionConfig>> {
        let json = |dir: &Path| {
            let path = dir.join("config.json");
            read_json::<Value>(&path).map(|all| (path, all))
        };
        match self {
            VisionPlace::Model(dir) => {
                let (path, all) = json(dir)?;
                VisionConfig::from_json(&all, width).map_err(|error| Error::file(path, error.to_string()))
            }
            VisionPlace::Gguf(file) => VisionConfig::of_gguf(&GgufFile::open(file)?, image_token).map(Some),
            VisionPlace::Tower(dir) => {
                let (path, all) = json(dir)?;
                let config = VisionConfig::of_tower(&all, width, image_token);
                config.map(Some).map_err(|error| Error::file(path, error.to_string()))
            }
        }
    }

    /// Its open files.
    ///
    /// # Errors
    /// There is no tower in them, or a file is damaged.
    pub fn files(&self) -> Result<VisionFiles> {
        match self {
            VisionPlace::Gguf(file) => Ok(VisionFiles::open_gguf(GgufFile::open(file)?, 0)?.0),
            VisionPlace::Model(dir) | VisionPlace::Tower(dir) => {
                VisionFiles::of_checkpoint(Checkpoint::open(dir)?)
            }
        }
    }

    /// Loads the tower alone, up to its features; none where the model is a decoder alone.
    ///
    /// # Errors
    /// It is of a kind that is not read, or a file is damaged.
    pub fn tower(&self, device: &Device, options: &LoadOptions) -> Result<Option<Tower>> {
        // Neither the width of a decoder nor the token of pictures is a matter of the tower.
        let Some(config) = self.config(0, 0)? else { return Ok(None) };
        Tower::load(config.tower, config.feature, &self.files()?, device, options).map(Some)
    }

    /// What is done to pictures for it.
    ///
    /// # Errors
    /// Its files do not say it, or say what is not supported.
    #[cfg(feature = "images")]
    pub fn processor(&self) -> Result<Processor> {
        match self {
            VisionPlace::Gguf(file) => Processor::of_gguf(&GgufFile::open(file)?),
            VisionPlace::Model(dir) | VisionPlace::Tower(dir) => Processor::of_model(dir),
        }
    }

    /// Loads it for a decoder; none where the model is a decoder alone. The projector is trained whole where `trained`;
    /// `seed` is that of a new one.
    ///
    /// # Errors
    /// It is of a kind that is not read, does not fit the decoder, or a file is damaged.
    pub fn open(
        &self,
        model: &Model,
        image_token: u32,
        options: &LoadOptions,
        trained: bool,
        seed: Stream,
    ) -> Result<Option<VisionModel>> {
        let width = model.config().hidden_size;
        match self {
            VisionPlace::Model(dir) => VisionModel::open(dir, model, options, trained),
            VisionPlace::Gguf(file) => {
                let (files, config) = VisionFiles::open_gguf(GgufFile::open(file)?, image_token)?;
                if config.width != width {
                    let what = format!(
                        "its projector makes rows of {} values, but the states of the model have {width}: it belongs to \
                         another model",
                        config.width
                    );
                    return Err(Error::file(file, what));
                }
                VisionModel::load(config, &files, model.device(), options, trained).map(Some)
            }
            VisionPlace::Tower(_) => {
                let Some(config) = self.config(width, image_token)? else { return Ok(None) };
                VisionModel::with_new_projector(config, &self.files()?, model, options, trained, seed)
                    .map(Some)
            }
        }
    }
}

impl VisionConfig {
    /// A tower alone with a new projector. Of towers with a class token the features are those of LLaVA: the states before
    /// the last layer, without that token; of others the last states.
    ///
    /// # Errors
    /// The tower is of a kind that is not read, or the file names a projector that is not known.
    pub fn of_tower(tower: &Value, width: usize, image_token: u32) -> Result<Self> {
        let projector = match tower["mm_projector_type"].as_str() {
            None | Some("mlp2x_gelu") => ProjectorKind::Mlp(Activation::GeluErf),
            Some("linear") => ProjectorKind::Linear,
            Some(other) => return Err(Error::config("mm_projector_type", other, "linear or mlp2x_gelu")),
        };
        let tower = TowerConfig::from_json(tower)?;
        let last = Feature::last(&tower);
        let feature = if last.class_token { Feature::behind(&tower, -2, false)? } else { last };
        Ok(VisionConfig { tower, feature, projector, projector_bias: true, width, image_token })
    }
}

impl VisionModel {
    /// A tower with a projector that is drawn: `U(-1 / sqrt(d_in), 1 / sqrt(d_in))`, weights and biases alike, as
    /// PyTorch's linears start.
    fn with_new_projector(
        config: VisionConfig,
        files: &VisionFiles,
        model: &Model,
        options: &LoadOptions,
        trained: bool,
        seed: Stream,
    ) -> Result<Self> {
        let device = model.device();
        let tower = Tower::load(config.tower.clone(), config.feature, files, device, options)?;
        let new = config.projector_tensors();
        let draw = |name: String, d_in: usize| {
            let expected = new.iter().find(|e| e.name == name);
            let dims: Vec<usize> = expected.iter().flat_map(|e| &e.axes).map(|axis| axis.0).collect();
            let bound = (d_in as f32).sqrt().recip();
            let values = seed.named(&name).uniform_vec(dims.iter().product(), bound);
            Param::new(name, Tensor::from_f32(device, &dims, &values)?, trained)
        };
        let linear = |path: &&str| -> Result<Full> {
            let weight = new.iter().find(|e| e.name == format!("{path}.weight"));
            let d_in = weight.and_then(|e| e.axes.last()).map_or(1, |axis| axis.0);
            let weight = draw(format!("{path}.weight"), d_in)?;
            let bias = if config.projector_bias { Some(draw(format!("{path}.bias"), d_in)?) } else { None };
            Ok(Full { weight, bias })
        };
        let linears = config.projector.linears().iter().map(linear).collect::<Result<_>>()?;
        let projector = Projector::new(config.projector, linears);
        let identity = VisionIdentity::of(&config, files, &[])?;
        Ok(VisionModel { config, tower, projector, identity })
    }
}
