//! Towers and projectors from their files.

use super::config::CHANNELS;
use super::files::Stored;
use super::projector::Full;
use super::tower::{Net, Tower};
use super::vit::Vit;
use super::{
    Feature, Projector, TowerConfig, VisionConfig, VisionFiles, VisionIdentity, VisionModel, VitConfig,
};
use crate::io::{Checkpoint, read_json};
use crate::model::block::Run;
use crate::model::load::{Parts, SAMPLED_ROWS, Source};
use crate::model::{Expected, LoadOptions, Model};
use crate::nn::Param;
use crate::{Device, Error, Result, Tensor};
use std::path::Path;
use std::sync::Arc;

const EMBEDDINGS: &str = "vision_model.embeddings";
/// The name is misspelt in every file.
const FIRST_NORM: &str = "vision_model.pre_layrnorm";
const LAST_NORM: &str = "vision_model.post_layernorm";

impl VitConfig {
    /// The tensors of a tower whose features are these; layers behind them are not needed.
    pub(super) fn tensors(&self, feature: Feature) -> Vec<Expected> {
        let d = (self.layers.hidden_size, "hidden_size");
        let p = (self.patch_size, "patch_size");
        let rows = (self.rows(self.grid() * self.grid()), "rows of image_size / patch_size squared");
        let axes = vec![d, (CHANNELS, "num_channels"), p, p];
        let mut all = vec![Expected { name: format!("{EMBEDDINGS}.patch_embedding.weight"), axes }];
        if self.class_token {
            all.push(Expected::vector(format!("{EMBEDDINGS}.class_embedding"), d));
            all.extend(self.layers.norm_tensors(FIRST_NORM));
        } else {
            all.push(Expected::vector(format!("{EMBEDDINGS}.patch_embedding.bias"), d));
        }
        all.push(Expected::matrix(format!("{EMBEDDINGS}.position_embedding.weight"), rows, d));
        all.extend((0..feature.layer).flat_map(|layer| self.layers.layer_tensors(layer)));
        if feature.norm {
            all.extend(self.layers.norm_tensors(LAST_NORM));
        }
        all
    }
}

/// Puts a tower together.
pub(crate) fn assemble(
    config: TowerConfig,
    feature: Feature,
    device: &Device,
    source: &impl Source,
) -> Result<Tower> {
    let net = match &config {
        TowerConfig::Vit(vit) => {
            Net::Vit(Box::new(transformer(VitConfig::clone(vit), feature, device, source)?))
        }
        TowerConfig::EfficientNet(net) => Net::EfficientNet(net.assemble(feature.layer, device, source)?),
    };
    Ok(Tower { config, feature, device: device.clone(), net })
}

fn transformer(config: VitConfig, feature: Feature, device: &Device, source: &impl Source) -> Result<Vit> {
    let sites = config.layers.sites();
    let parts = Parts { config: &config.layers, device, source, sites: &sites };
    let d = config.layers.hidden_size;
    let rows = config.rows(config.grid() * config.grid());
    let vector = |name: &str| source.vector(&format!("{EMBEDDINGS}.{name}"));
    let bias = || vector("patch_embedding.bias");
    let class = || vector("class_embedding")?.reshape(&[1, d]);
    // Without rotations no position is looked at.
    let positions = Tensor::from_u32(device, &[1, 1], &[0])?;
    let shared = Arc::new(config.layers.clone());
    let run = Arc::new(Run { config: shared, ropes: Vec::new(), positions, valid: None });
    let layers = (0..feature.layer).map(|layer| parts.layer(layer).map(Arc::new)).collect::<Result<_>>()?;
    Ok(Vit {
        patch: vector("patch_embedding.weight")?.reshape(&[d, config.patch_values()])?,
        patch_bias: if config.class_token { None } else { Some(bias()?) },
        class: if config.class_token { Some(class()?) } else { None },
        positions: vector("position_embedding.weight")?.reshape(&[rows, d])?,
        first_norm: if config.class_token { Some(parts.norm(FIRST_NORM)?) } else { None },
        layers,
        run,
        last_norm: if feature.norm { Some(parts.norm(LAST_NORM)?) } else { None },
        sites,
        feature,
        device: device.clone(),
        config,
    })
}

impl Tower {
    /// The tower of a folder that holds a tower alone, up to its last layer.
    ///
    /// # Errors
    /// Its `config.json` describes no tower that is read; those of [`load`](Tower::load).
    pub fn open(dir: &Path, device: &Device, options: &LoadOptions) -> Result<Self> {
        let path = dir.join("config.json");
        let config = TowerConfig::from_json(&read_json(&path)?)
            .map_err(|error| Error::file(&path, error.to_string()))?;
        let files = VisionFiles::of_checkpoint(Checkpoint::open(dir)?)?;
        let feature = Feature::last(&config);
        Self::load(config, feature, &files, device, options)
    }

    /// Builds a tower up to its features from open files.
    ///
    /// # Errors
    /// Tensors are missing or have other shapes than the configuration says, or the device refuses them.
    pub fn load(
        config: TowerConfig,
        feature: Feature,
        files: &VisionFiles,
        device: &Device,
        options: &LoadOptions,
    ) -> Result<Self> {
        files.check(&config.tensors(feature))?;
        finite(files, &config.tensors(feature), options)?;
        assemble(config, feature, device, &Stored { files, device, weights: options.weights })
    }
}

impl VisionModel {
    /// The vision part of a Hugging Face directory; none where its model is a decoder alone. `model` is that decoder.
    ///
    /// # Errors
    /// The vision part is of a kind that is not read; those of [`load`](VisionModel::load).
    pub fn open(dir: &Path, model: &Model, options: &LoadOptions, trained: bool) -> Result<Option<Self>> {
        let path = dir.join("config.json");
        let in_file = |error: Error| Error::file(&path, error.to_string());
        let config =
            VisionConfig::from_json(&read_json(&path)?, model.config().hidden_size).map_err(in_file)?;
        let Some(config) = config else { return Ok(None) };
        if config.image_token as usize >= model.config().vocab_size {
            let what = format!(
                "the image token is {}, but the vocabulary has {} tokens",
                config.image_token,
                model.config().vocab_size
            );
            return Err(Error::file(&path, what));
        }
        let files = VisionFiles::of_checkpoint(Checkpoint::open(dir)?)?;
        Self::load(config, &files, model.device(), options, trained).map(Some)
    }

    /// Builds tower and projector from open files. The projector is trained whole where `trained`.
    ///
    /// # Errors
    /// Tensors are missing or have other shapes than the configuration says, or the device refuses them.
    pub fn load(
        config: VisionConfig,
        files: &VisionFiles,
        device: &Device,
        options: &LoadOptions,
        trained: bool,
    ) -> Result<Self> {
        files.check(&config.tensors())?;
        finite(files, &config.tensors(), options)?;
        let source = Stored { files, device, weights: options.weights };
        let tower = assemble(config.tower.clone(), config.feature, device, &source)?;
        let param = |name: String| {
            let raw = files.raw(&name)?;
            let dims = if raw.axes == 1 { vec![raw.cols] } else { vec![raw.rows, raw.cols] };
            Param::new(name, Tensor::from_f32(device, &dims, &raw.values()?)?, trained)
        };
        let linear = |path: &&str| -> Result<Full> {
            let bias = || param(format!("{path}.bias"));
            let bias = if config.projector_bias { Some(bias()?) } else { None };
            Ok(Full { weight: param(format!("{path}.weight"))?, bias })
        };
        let linears = config.projector.linears().iter().map(linear).collect::<Result<_>>()?;
        let projector = Projector::new(config.projector, linears);
        let identity = VisionIdentity::of(&config, files, &config.projector_tensors())?;
        Ok(VisionModel { config, tower, projector, identity })
    }
}

/// Refuses values that are no numbers; of matrices some rows are looked at, as of a decoder's.
pub(super) fn finite(files: &VisionFiles, expected: &[Expected], options: &LoadOptions) -> Result<()> {
    if options.allow_nonfinite {
        return Ok(());
    }
    for e in expected {
        let seen = files.raw(&e.name)?.scan(Some(SAMPLED_ROWS))?;
        if let (Some(_), Some(remark)) = (seen.nonfinite, seen.remark()) {
            let name = files.stored_name(&e.name);
            return Err(Error::file(files.path(), format!("tensor '{name}': {remark}")));
        }
    }
    Ok(())
}
