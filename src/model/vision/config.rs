//! What a vision tower and its projector are, as `config.json` says it.

use super::vit_config::{CLIP_OF_LLAVA, Defaults, IDEFICS3, TowerFacts};
use super::{EfficientNetConfig, ProjectorKind, VitConfig};
use crate::model::{Activation, Expected};
use crate::{Error, Format, Result};
use serde_json::{Value, json};

/// Channels of a picture.
pub(super) const CHANNELS: usize = 3;

/// A vision tower, described.
#[derive(Debug, Clone, PartialEq)]
pub enum TowerConfig {
    /// Patches of a picture, made rows, and layers of attention over all of them.
    Vit(Box<VitConfig>),
    /// Convolutions.
    EfficientNet(EfficientNetConfig),
}

/// Which states of a tower are a picture's features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// The number of layers that they are behind: 0 are the embedded patches.
    pub layer: usize,
    /// Whether the tower's last norm follows.
    pub norm: bool,
    /// Whether the row of the class token is kept.
    pub class_token: bool,
}

/// The vision part of a model: tower, feature, projector, and the token in whose place its rows stand.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    pub tower: TowerConfig,
    pub feature: Feature,
    pub projector: ProjectorKind,
    /// Whether the linears of the projector have biases.
    pub projector_bias: bool,
    /// Width of the decoder's states.
    pub width: usize,
    /// The token that stands for each row of a picture.
    pub image_token: u32,
}

impl TowerConfig {
    /// The tower that the JSON object of its configuration describes.
    ///
    /// # Errors
    /// Its `model_type` is none that is read, or sizes do not fit each other.
    pub fn from_json(value: &Value) -> Result<Self> {
        Self::of_class(value, None)
    }

    /// The same; the class of a tower without a `model_type`, where there is one.
    fn of_class(value: &Value, default: Option<&Defaults>) -> Result<Self> {
        if EfficientNetConfig::describes(value) {
            return EfficientNetConfig::from_json(value).map(TowerConfig::EfficientNet);
        }
        Ok(TowerConfig::Vit(Box::new(VitConfig::of_class(TowerFacts::of(value)?, default)?)))
    }

    /// As `config.json` names it, for example `clip_vision_model`.
    pub fn model_type(&self) -> &str {
        match self {
            TowerConfig::Vit(vit) => &vit.model_type,
            TowerConfig::EfficientNet(net) => &net.model_type,
        }
    }
    /// Side of the pictures that it is made for, in pixels.
    pub fn image_size(&self) -> usize {
        match self {
            TowerConfig::Vit(vit) => vit.image_size,
            TowerConfig::EfficientNet(net) => net.image_size,
        }
    }
    /// The number of its layers, or blocks of convolutions.
    pub fn layers(&self) -> usize {
        match self {
            TowerConfig::Vit(vit) => vit.layers.num_hidden_layers,
            TowerConfig::EfficientNet(net) => net.blocks().len(),
        }
    }
    /// Whether a row that belongs to no place of the picture stands before the others.
    pub fn class_token(&self) -> bool {
        matches!(self, TowerConfig::Vit(vit) if vit.class_token)
    }
    /// Values of a row of features.
    pub fn width(&self, feature: Feature) -> usize {
        match self {
            TowerConfig::Vit(vit) => vit.layers.hidden_size,
            TowerConfig::EfficientNet(net) => net.width(feature.layer),
        }
    }
    /// Rows of features along a side of a picture of [`image_size`](TowerConfig::image_size).
    pub fn grid(&self, feature: Feature) -> usize {
        match self {
            TowerConfig::Vit(vit) => vit.grid(),
            TowerConfig::EfficientNet(net) => net.grid(feature.layer),
        }
    }
    /// The tensors of a tower whose features are these; layers behind them are not needed.
    pub fn tensors(&self, feature: Feature) -> Vec<Expected> {
        match self {
            TowerConfig::Vit(vit) => vit.tensors(feature),
            TowerConfig::EfficientNet(net) => net.tensors(feature.layer),
        }
    }

    /// 32-bit words of its weights on a device, of tensors in these formats: linears of layers keep theirs, the rest is f32.
    pub fn stored_words(&self, feature: Feature, format: impl Fn(&str, usize) -> Format) -> usize {
        let words = |e: Expected| {
            let n: usize = e.axes.iter().map(|axis| axis.0).product();
            match (self, &e.axes[..]) {
                (TowerConfig::Vit(_), [rows, cols]) if e.name.contains(".encoder.layers.") => {
                    rows.0 * format(&e.name, cols.0).row_words(cols.0)
                }
                // Of a batch norm one vector is left: the bias of the convolution before it.
                (TowerConfig::EfficientNet(_), [_]) if !e.name.ends_with(".bias") => 0,
                _ => n,
            }
        };
        self.tensors(feature).into_iter().map(words).sum()
    }
}

impl Feature {
    /// The states behind a layer, counted from the embedded patches, or from the end where the number is negative:
    /// -1 is the last layer.
    ///
    /// # Errors
    /// The tower has no such layer.
    pub fn behind(tower: &TowerConfig, layer: i64, class_token: bool) -> Result<Self> {
        let layers = tower.layers() as i64;
        let at = if layer < 0 { layers + 1 + layer } else { layer };
        if at < 0 || at > layers {
            let expected = format!("in -{}..={layers}, of a tower of {layers} layers", layers + 1);
            return Err(Error::config("vision_feature_layer", layer, expected));
        }
        Ok(Feature { layer: at as usize, norm: false, class_token: class_token && tower.class_token() })
    }

    /// The states behind the last layer, and the last norm where there is one.
    pub fn last(tower: &TowerConfig) -> Self {
        let norm = matches!(tower, TowerConfig::Vit(_));
        Feature { layer: tower.layers(), norm, class_token: tower.class_token() }
    }
}

impl VisionConfig {
    /// The vision part that a model's `config.json` describes; none where the model is a decoder alone. `width` is that
    /// of the decoder's states.
    ///
    /// # Errors
    /// It has a vision part of a kind that is not read, or fields that do not fit each other.
    pub fn from_json(all: &Value, width: usize) -> Result<Option<Self>> {
        match all["model_type"].as_str() {
            Some("llava") => Self::llava(all, width).map(Some),
            Some("idefics3" | "smolvlm") => Self::idefics3(all, width).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether a model's `config.json` is that of a model that sees.
    pub fn is_described_by(all: &Value) -> bool {
        matches!(all["model_type"].as_str(), Some("llava" | "idefics3" | "smolvlm"))
    }

    fn llava(all: &Value, width: usize) -> Result<Self> {
        let tower = TowerConfig::of_class(&object(&all["vision_config"]), Some(&CLIP_OF_LLAVA))?;
        let layer = match &all["vision_feature_layer"] {
            Value::Null => -2,
            value => value.as_i64().ok_or_else(|| {
                Error::config("vision_feature_layer", value, "one layer: several side by side are not read")
            })?,
        };
        let class_token = match all["vision_feature_select_strategy"].as_str() {
            None | Some("default") => false,
            Some("full") => true,
            Some(other) => {
                return Err(Error::config("vision_feature_select_strategy", other, "default or full"));
            }
        };
        let activation = match all["projector_hidden_act"].as_str().unwrap_or("gelu") {
            "gelu" => Activation::GeluErf,
            "gelu_pytorch_tanh" => Activation::Gelu,
            other => return Err(Error::config("projector_hidden_act", other, "gelu or gelu_pytorch_tanh")),
        };
        Ok(VisionConfig {
            feature: Feature::behind(&tower, layer, class_token)?,
            tower,
            projector: ProjectorKind::Mlp(activation),
            projector_bias: all["multimodal_projector_bias"].as_bool().unwrap_or(true),
            width,
            image_token: token(all, 32_000)?,
        })
    }

    fn idefics3(all: &Value, width: usize) -> Result<Self> {
        let tower = TowerConfig::of_class(&object(&all["vision_config"]), Some(&IDEFICS3))?;
        let feature = Feature::last(&tower);
        let grid = tower.grid(feature);
        let factor = match &all["scale_factor"] {
            Value::Null => 2,
            value => value.as_u64().unwrap_or(0) as usize,
        };
        if factor == 0 || !grid.is_multiple_of(factor) {
            let expected = format!("a divisor of {grid}, the patches along a side");
            return Err(Error::config("scale_factor", &all["scale_factor"], expected));
        }
        Ok(VisionConfig {
            feature,
            tower,
            projector: ProjectorKind::Shuffle { factor },
            projector_bias: false,
            width,
            image_token: token(all, 128_257)?,
        })
    }

    /// Rows that a picture, or one tile of it, has among the tokens.
    pub fn rows(&self) -> usize {
        let grid = self.tower.grid(self.feature);
        let patches = grid * grid;
        match self.projector {
            ProjectorKind::Shuffle { factor } => patches / (factor * factor),
            _ => patches + usize::from(self.feature.class_token),
        }
    }
}

/// The value, or an empty object in its absence.
fn object(value: &Value) -> Value {
    if value.is_null() { json!({}) } else { value.clone() }
}

/// The token that stands for a picture.
fn token(all: &Value, default: u32) -> Result<u32> {
    for field in ["image_token_index", "image_token_id"] {
        if !all[field].is_null() {
            let number = all[field].as_u64().and_then(|n| u32::try_from(n).ok());
            return number.ok_or_else(|| Error::config(field, &all[field], "the number of a token"));
        }
    }
    Ok(default)
}
