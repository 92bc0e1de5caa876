//! Towers by their sizes alone, with random weights: for measuring speed and memory without a file.

use super::projector::{Full, Projector};
use super::{
    Feature, ProjectorKind, Tower, TowerConfig, VisionConfig, VisionIdentity, VisionModel, assemble,
};
use crate::model::load::Source;
use crate::model::shape::MadeUp;
use crate::model::{Activation, Expected, Model};
use crate::nn::Param;
use crate::{Device, Error, Format, Result, Stream, Tensor, Weight};
use serde_json::{Value, json};

/// The sizes of a published tower. Its features are the states behind the last layer, without a class token.
#[derive(Debug, Clone, PartialEq)]
pub struct TowerShape {
    /// As it was asked for.
    pub name: String,
    pub config: TowerConfig,
    pub feature: Feature,
    /// The projector that stands behind it in a model of its kind.
    pub projector: ProjectorKind,
}

/// The projector of LLaVA.
const MLP: ProjectorKind = ProjectorKind::Mlp(Activation::GeluErf);

/// The names of all shapes.
const NAMES: [&str; 8] = [
    "clip-b32",
    "clip-b16",
    "clip-l14",
    "clip-l14-336",
    "siglip-b16",
    "siglip-b16-512",
    "siglip-so400m-384",
    "efficientnet-lite0",
];

/// What `config.json` of a tower says, and its projector.
fn known(name: &str) -> Option<(Value, ProjectorKind)> {
    let clip = |layers: [usize; 4], image: usize, patch: usize| {
        let [hidden, inner, layers, heads] = layers;
        json!({
            "model_type": "clip_vision_model", "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": image, "patch_size": patch,
        })
    };
    let siglip = |layers: [usize; 4], image: usize, patch: usize| {
        let mut config = clip(layers, image, patch);
        config["model_type"] = json!("siglip_vision_model");
        config
    };
    let base = [768, 3072, 12, 12];
    let large = [1024, 4096, 24, 16];
    Some(match name {
        "clip-b32" => (clip(base, 224, 32), MLP),
        "clip-b16" => (clip(base, 224, 16), MLP),
        "clip-l14" => (clip(large, 224, 14), MLP),
        "clip-l14-336" => (clip(large, 336, 14), MLP),
        "siglip-b16" => (siglip(base, 224, 16), MLP),
        // In SmolVLM-256M.
        "siglip-b16-512" => (siglip(base, 512, 16), ProjectorKind::Shuffle { factor: 4 }),
        "siglip-so400m-384" => (siglip([1152, 4304, 27, 16], 384, 14), MLP),
        "efficientnet-lite0" => (json!({ "model_type": "efficientnet-lite0" }), MLP),
        _ => return None,
    })
}

impl TowerShape {
    /// A shape by its name, such as `clip-b16`.
    ///
    /// # Errors
    /// There is no such shape.
    pub fn parse(name: &str) -> Result<Self> {
        let Some((config, projector)) = known(name) else {
            let what = format!("there is no tower '{name}'; the towers are {}", NAMES.join(", "));
            return Err(Error::refused("shape", what));
        };
        let config = TowerConfig::from_json(&config)?;
        let feature = Feature { class_token: false, ..Feature::last(&config) };
        Ok(TowerShape { name: name.into(), config, feature, projector })
    }

    /// The vision part of a decoder with states of `width` whose tokens are below `image_token`.
    pub fn vision(&self, width: usize, image_token: u32) -> VisionConfig {
        VisionConfig {
            tower: self.config.clone(),
            feature: self.feature,
            projector: self.projector,
            projector_bias: self.projector == MLP,
            width,
            image_token,
        }
    }
}

/// Random tensors of a tower: every product has values of about one.
struct TowerMadeUp<'a> {
    device: &'a Device,
    matrices: MadeUp<'a>,
}

impl Source for TowerMadeUp<'_> {
    fn weight(&self, name: &str) -> Result<Weight> {
        self.matrices.weight(name)
    }

    fn vector(&self, name: &str) -> Result<Tensor> {
        let dims = self.matrices.dims(name)?;
        let n: usize = dims.iter().product();
        if dims.len() > 1 {
            // Weights of convolutions and embeddings of places.
            let each = (n / dims[0].max(1)) as f32;
            let values = Stream::new(11).named(name).normal_vec(n, each.powf(-0.5));
            return Tensor::from_f32(self.device, dims, &values);
        }
        let value = match name.rsplit('.').next() {
            // Batch norms leave values as they are; what behind a layer norm is multiplied has a deviation of one.
            Some("running_var") => 1.0,
            Some("weight") if name.contains("_bn") => 1.0,
            Some("weight") => (n as f32).powf(-0.5),
            _ => 0.0,
        };
        Tensor::full(self.device, dims, value)
    }
}

impl Tower {
    /// A tower with the sizes of a shape and random weights, the same each time.
    ///
    /// # Errors
    /// The device refuses it.
    pub fn of_shape(shape: &TowerShape, device: &Device) -> Result<Self> {
        let matrices = MadeUp::new(device, Format::F32, shape.config.tensors(shape.feature));
        let source = TowerMadeUp { device, matrices };
        assemble(shape.config.clone(), shape.feature, device, &source)
    }
}

impl VisionModel {
    /// The vision part of a decoder, with the sizes of a shape and random weights. The projector is trained whole where
    /// `trained`.
    ///
    /// # Errors
    /// The device refuses it.
    pub fn of_shape(shape: &TowerShape, model: &Model, trained: bool) -> Result<Self> {
        let device = model.device();
        let token = u32::try_from(model.config().vocab_size).unwrap_or(u32::MAX);
        let config = shape.vision(model.config().hidden_size, token);
        let param = |e: &Expected| {
            let dims: Vec<usize> = e.axes.iter().map(|axis| axis.0).collect();
            let each = dims.last().map_or(1.0, |&n| n as f32);
            let values = Stream::new(12).named(&e.name).normal_vec(dims.iter().product(), each.powf(-0.5));
            Param::new(e.name.clone(), Tensor::from_f32(device, &dims, &values)?, trained)
        };
        let tensors = config.projector_tensors();
        let linear = |path: &&str| -> Result<Full> {
            let of = |what: &str| tensors.iter().find(|e| e.name == format!("{path}.{what}")).map(param);
            let missing = || Error::refused("shape", format!("has no projector '{path}'"));
            Ok(Full { weight: of("weight").ok_or_else(missing)??, bias: of("bias").transpose()? })
        };
        let linears = config.projector.linears().iter().map(linear).collect::<Result<_>>()?;
        let projector = Projector::new(config.projector, linears);
        let tower = Tower::of_shape(shape, device)?;
        Ok(VisionModel { identity: VisionIdentity::of_shape(&config), config, tower, projector })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vision::TowerConfig::Vit;

    #[test]
    fn every_name_is_a_tower() {
        for name in NAMES {
            assert_eq!(TowerShape::parse(name).unwrap().name, name);
        }
        let shape = TowerShape::parse("clip-b16").unwrap();
        assert!(matches!(&shape.config, Vit(vit) if vit.grid() == 14 && vit.class_token));
        let values = |e: &Expected| e.axes.iter().map(|a| a.0).product::<usize>();
        let all: usize = shape.config.tensors(shape.feature).iter().map(values).sum();
        // CLIP's ViT-B/16 without the projection into the space of texts.
        assert_eq!(all, 85_799_424);
        assert_eq!(shape.vision(576, 9).rows(), 196);
        assert_eq!(TowerShape::parse("siglip-b16-512").unwrap().vision(576, 9).rows(), 64);
        let error = TowerShape::parse("clip").unwrap_err().to_string();
        assert!(error.contains("clip-b16, clip-l14"), "{error}");
    }
}
