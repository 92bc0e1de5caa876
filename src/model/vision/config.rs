//! What a vision tower and its projector are made of, as `config.json` says it.

use super::ProjectorKind;
use crate::model::config::{BlockNorms, LayerNames, MlpKind, Norm};
use crate::model::describe::describe;
use crate::model::families::{Facts, Family};
use crate::model::{Activation, LayerConfig, ModelConfig};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// Channels of a picture.
pub(super) const CHANNELS: usize = 3;
/// The largest side of a picture or a patch.
const LARGEST: usize = 1 << 14;

/// A vision tower, described: patches of a picture, made rows, and layers over all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct TowerConfig {
    /// As `config.json` names it, for example `clip_vision_model`.
    pub model_type: String,
    /// Side of the pictures that its positions are made for, in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Whether a learned row stands before the patches and a norm before the first layer, as in CLIP; else patches have
    /// a bias.
    pub class_token: bool,
    /// Its layers.
    pub layers: ModelConfig,
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

/// Towers whose files leave out what equals the values of their class.
struct Defaults {
    model_type: &'static str,
    class_token: bool,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    image_size: usize,
    patch_size: usize,
    activation: &'static str,
    eps: f32,
}

const CLIP: Defaults = Defaults {
    model_type: "clip_vision_model",
    class_token: true,
    hidden_size: 768,
    intermediate_size: 3072,
    layers: 12,
    heads: 12,
    image_size: 224,
    patch_size: 32,
    activation: "quick_gelu",
    eps: 1e-5,
};
/// CLIP's in a LLaVA that says nothing of its tower.
const CLIP_OF_LLAVA: Defaults = Defaults {
    hidden_size: 1024,
    intermediate_size: 4096,
    layers: 24,
    heads: 16,
    image_size: 336,
    patch_size: 14,
    ..CLIP
};
const SIGLIP: Defaults = Defaults {
    model_type: "siglip_vision_model",
    class_token: false,
    patch_size: 16,
    activation: "gelu_pytorch_tanh",
    eps: 1e-6,
    ..CLIP
};
const IDEFICS3: Defaults =
    Defaults { model_type: "idefics3_vision", hidden_size: 1152, heads: 16, patch_size: 32, ..SIGLIP };
/// Every tower that is read.
const TOWERS: [Defaults; 5] = [
    CLIP,
    SIGLIP,
    IDEFICS3,
    Defaults { model_type: "smolvlm_vision", ..IDEFICS3 },
    // The name in old files.
    Defaults { model_type: "idefics3", ..IDEFICS3 },
];

/// What all towers share; the rest are their facts.
static LAYERS: Family = Family {
    model_type: "vision tower",
    class: "",
    architecture: None,
    models: "",
    features: "",
    activation: Activation::Gelu,
    describe: |facts, config| {
        let eps = facts.need("layer_norm_eps", facts.layer_norm_eps)?;
        config.norm = Norm { layer: true, bias: true, one_more: false, eps };
        config.norms = BlockNorms::TOWER;
        config.names = LayerNames::TOWER;
        config.mlp = MlpKind::Plain;
        config.attention_bias = true;
        config.o_proj_bias = true;
        config.mlp_bias = true;
        config.causal = false;
        config.layers = vec![LayerConfig::default(); facts.num_hidden_layers];
        Ok(())
    },
};

/// The fields of a tower in `config.json`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TowerFacts {
    pub model_type: Option<String>,
    pub hidden_size: Option<usize>,
    pub intermediate_size: Option<usize>,
    pub num_hidden_layers: Option<usize>,
    pub num_attention_heads: Option<usize>,
    pub num_channels: Option<usize>,
    pub image_size: Option<usize>,
    pub patch_size: Option<usize>,
    pub hidden_act: Option<String>,
    pub layer_norm_eps: Option<f32>,
}

impl TowerFacts {
    fn of(value: &Value) -> Result<Self> {
        TowerFacts::deserialize(value).map_err(|e| Error::refused("vision_config", e.to_string()))
    }

    /// The description, with the values of a class for what is absent.
    fn describe(self, class: &Defaults) -> Result<TowerConfig> {
        if let Some(found) = self.num_channels.filter(|&n| n != CHANNELS) {
            return Err(Error::config("num_channels", found, CHANNELS));
        }
        let facts = Facts {
            hidden_size: self.hidden_size.unwrap_or(class.hidden_size),
            intermediate_size: self.intermediate_size.unwrap_or(class.intermediate_size),
            num_hidden_layers: self.num_hidden_layers.unwrap_or(class.layers),
            num_attention_heads: self.num_attention_heads.unwrap_or(class.heads),
            layer_norm_eps: Some(self.layer_norm_eps.unwrap_or(class.eps)),
            hidden_act: Some(self.hidden_act.unwrap_or_else(|| class.activation.into())),
            // A tower has no vocabulary, and positions of its own.
            vocab_size: 1,
            max_position_embeddings: 1,
            ..Facts::default()
        };
        let config = TowerConfig {
            model_type: class.model_type.into(),
            image_size: self.image_size.unwrap_or(class.image_size),
            patch_size: self.patch_size.unwrap_or(class.patch_size),
            class_token: class.class_token,
            layers: describe(&LAYERS, class.model_type, &facts, Value::Null)?,
        };
        config.check()
    }
}

impl TowerConfig {
    /// The tower that the JSON object of its configuration describes.
    ///
    /// # Errors
    /// Its `model_type` is none that is read, or sizes do not fit each other.
    pub fn from_json(value: &Value) -> Result<Self> {
        Self::of_facts(TowerFacts::of(value)?)
    }

    /// The tower that these fields describe, with a `model_type`.
    pub(super) fn of_facts(facts: TowerFacts) -> Result<Self> {
        Self::of_class(facts, None)
    }

    fn with_default(value: &Value, default: &Defaults) -> Result<Self> {
        Self::of_class(TowerFacts::of(value)?, Some(default))
    }

    fn of_class(facts: TowerFacts, default: Option<&Defaults>) -> Result<Self> {
        let known = || TOWERS.map(|tower| tower.model_type).join(", ");
        let class = match (&facts.model_type, default) {
            (None, Some(class)) => class,
            (None, None) => {
                let what = format!("has no model_type; the towers that are read are {}", known());
                return Err(Error::refused("vision_config", what));
            }
            (Some(name), _) => TOWERS.iter().find(|tower| tower.model_type == name).ok_or_else(|| {
                Error::refused(
                    "vision_config",
                    format!("is a '{name}'; the towers that are read are {}", known()),
                )
            })?,
        };
        facts.describe(class)
    }

    fn check(self) -> Result<Self> {
        for (field, n) in [("image_size", self.image_size), ("patch_size", self.patch_size)] {
            if n == 0 || n > LARGEST {
                return Err(Error::config(field, n, format!("in 1..={LARGEST}")));
            }
        }
        if self.patch_size > self.image_size {
            let most = format!("at most image_size ({})", self.image_size);
            return Err(Error::config("patch_size", self.patch_size, most));
        }
        Ok(self)
    }

    /// Patches along a side of a picture of [`image_size`](TowerConfig::image_size).
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Rows that a picture of `patches` has in the layers.
    pub fn rows(&self, patches: usize) -> usize {
        patches + usize::from(self.class_token)
    }

    /// Values of a patch.
    pub fn patch_values(&self) -> usize {
        CHANNELS * self.patch_size * self.patch_size
    }
}

impl Feature {
    /// The states behind a layer, counted from the embedded patches, or from the end where the number is negative:
    /// -1 is the last layer.
    ///
    /// # Errors
    /// The tower has no such layer.
    pub fn behind(tower: &TowerConfig, layer: i64, class_token: bool) -> Result<Self> {
        let layers = tower.layers.num_hidden_layers as i64;
        let at = if layer < 0 { layers + 1 + layer } else { layer };
        if at < 0 || at > layers {
            let expected = format!("in -{}..={layers}, of a tower of {layers} layers", layers + 1);
            return Err(Error::config("vision_feature_layer", layer, expected));
        }
        Ok(Feature { layer: at as usize, norm: false, class_token: class_token && tower.class_token })
    }

    /// The states behind the last layer and the last norm.
    pub fn last(tower: &TowerConfig) -> Self {
        Feature { layer: tower.layers.num_hidden_layers, norm: true, class_token: tower.class_token }
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

    fn llava(all: &Value, width: usize) -> Result<Self> {
        let tower = TowerConfig::with_default(&object(&all["vision_config"]), &CLIP_OF_LLAVA)?;
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
        let tower = TowerConfig::with_default(&object(&all["vision_config"]), &IDEFICS3)?;
        let factor = match &all["scale_factor"] {
            Value::Null => 2,
            value => value.as_u64().unwrap_or(0) as usize,
        };
        if factor == 0 || !tower.grid().is_multiple_of(factor) {
            let expected = format!("a divisor of {}, the patches along a side", tower.grid());
            return Err(Error::config("scale_factor", &all["scale_factor"], expected));
        }
        Ok(VisionConfig {
            feature: Feature::last(&tower),
            tower,
            projector: ProjectorKind::Shuffle { factor },
            projector_bias: false,
            width,
            image_token: token(all, 128_257)?,
        })
    }

    /// Rows that a picture, or one tile of it, has among the tokens.
    pub fn rows(&self) -> usize {
        let patches = self.tower.grid() * self.tower.grid();
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
