//! What a transformer that sees is made of, as its configuration says it: CLIP's, SigLIP's, that of Idefics3.

use super::config::CHANNELS;
use super::efficientnet::KINDS;
use crate::model::config::{BlockNorms, LayerNames, MlpKind, Norm};
use crate::model::describe::describe;
use crate::model::families::{Facts, Family};
use crate::model::{Activation, LayerConfig, ModelConfig};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// The largest side of a picture or a patch.
const LARGEST: usize = 1 << 14;

/// A transformer that sees, described: patches of a picture, made rows, and layers over all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct VitConfig {
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

/// Towers whose files leave out what equals the values of their class.
pub(super) struct Defaults {
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
pub(super) const CLIP_OF_LLAVA: Defaults = Defaults {
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
pub(super) const IDEFICS3: Defaults =
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
    pub(super) fn of(value: &Value) -> Result<Self> {
        TowerFacts::deserialize(value).map_err(|e| Error::refused("vision_config", e.to_string()))
    }

    /// The description, with the values of a class for what is absent.
    fn describe(self, class: &Defaults) -> Result<VitConfig> {
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
        let config = VitConfig {
            model_type: class.model_type.into(),
            image_size: self.image_size.unwrap_or(class.image_size),
            patch_size: self.patch_size.unwrap_or(class.patch_size),
            class_token: class.class_token,
            layers: describe(&LAYERS, class.model_type, &facts, Value::Null)?,
        };
        config.check()
    }
}

impl VitConfig {
    /// The tower that these fields describe; the class of those without a `model_type`, where there is one.
    pub(super) fn of_class(facts: TowerFacts, default: Option<&Defaults>) -> Result<Self> {
        let known = || format!("{}, {}", TOWERS.map(|tower| tower.model_type).join(", "), KINDS.join(", "));
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

    /// Patches along a side of a picture of [`image_size`](VitConfig::image_size).
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
