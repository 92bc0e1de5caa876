//! What tells a vision part from others, however its files store it.

use super::{ProjectorKind, TowerConfig, VisionConfig, VisionFiles, VitConfig};
use crate::Result;
use crate::model::load::SAMPLED_ROWS;
use crate::model::{Activation, Expected, Fingerprint};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The sizes of a vision part, and fingerprints of its weights: all vectors, and 16 rows of each matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VisionIdentity {
    /// Sizes and kinds of tower and projector.
    fields: Map<String, Value>,
    tower: Fingerprint,
    projector: Fingerprint,
}

impl VisionIdentity {
    /// With the tensors of the projector that are in the files: none of a new one.
    pub(super) fn of(config: &VisionConfig, files: &VisionFiles, projector: &[Expected]) -> Result<Self> {
        Ok(VisionIdentity {
            fields: fields(config),
            tower: fingerprint(files, &config.tower.tensors(config.feature))?,
            projector: fingerprint(files, projector)?,
        })
    }

    /// That of a vision part without files.
    pub(super) fn of_shape(config: &VisionConfig) -> Self {
        let nothing = Fingerprint::of_values(&[], &[]);
        VisionIdentity { fields: fields(config), tower: nothing.clone(), projector: nothing }
    }

    /// All that decides what the tower computes, whatever the projector is.
    pub fn tower(&self) -> Value {
        let own = self.fields.iter().filter(|(name, _)| !["projector", "width"].contains(&name.as_str()));
        let fields: Map<String, Value> = own.map(|(name, value)| (name.clone(), value.clone())).collect();
        json!({ "fields": fields, "fingerprint": self.tower })
    }

    /// What differs between the towers, or in what they and the projectors are; none where they are the same.
    pub fn other_tower(&self, here: &Self) -> Option<String> {
        let differ = differences(&self.fields, &here.fields);
        if !differ.is_empty() {
            return Some(differ.join(", "));
        }
        let same = self.tower.matches(&here.tower);
        (!same).then(|| "the tower has the same sizes and other weights".into())
    }

    /// Whether both have the same projector.
    pub fn same_projector(&self, here: &Self) -> bool {
        self.projector.matches(&here.projector)
    }
}

/// The fields that differ, with both values.
pub(crate) fn differences(there: &Map<String, Value>, here: &Map<String, Value>) -> Vec<String> {
    let absent = Value::Null;
    let other = |(name, value): (&String, &Value)| {
        let here = here.get(name).unwrap_or(&absent);
        (value != here).then(|| format!("{name} {value} there and {here} here"))
    };
    let more = |(name, value): (&String, &Value)| format!("{name} {value} here and not there");
    let added = here.iter().filter(|(name, _)| !there.contains_key(*name)).map(more);
    there.iter().filter_map(other).chain(added).collect()
}

/// All that decides what is computed, besides the weights.
fn fields(config: &VisionConfig) -> Map<String, Value> {
    let projector = match config.projector {
        ProjectorKind::Linear => "linear".to_string(),
        ProjectorKind::Mlp(Activation::GeluErf) => "mlp2x_gelu".into(),
        ProjectorKind::Mlp(_) => "mlp2x_gelu_tanh".into(),
        ProjectorKind::Shuffle { factor } => format!("pixel_shuffle_{factor}"),
    };
    let mut fields = match &config.tower {
        TowerConfig::Vit(vit) => of_transformer(vit),
        TowerConfig::EfficientNet(net) => json!(net),
    };
    // Layers behind the features count for nothing, and may be missing.
    fields["feature_layer"] = json!(config.feature.layer);
    fields["feature_norm"] = json!(config.feature.norm);
    fields["feature_class_token"] = json!(config.feature.class_token);
    fields["projector"] = json!(projector);
    fields["width"] = json!(config.width);
    fields.as_object().cloned().unwrap_or_default()
}

fn of_transformer(vit: &VitConfig) -> Value {
    let layers = &vit.layers;
    let activation = match layers.activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu_pytorch_tanh",
        Activation::GeluErf => "gelu",
        Activation::QuickGelu => "quick_gelu",
    };
    json!({
        "hidden_size": layers.hidden_size, "intermediate_size": layers.intermediate_size,
        "num_attention_heads": layers.num_attention_heads, "hidden_act": activation,
        // As it is written, and not widened.
        "layer_norm_eps": layers.norm.eps.to_string(),
        "image_size": vit.image_size, "patch_size": vit.patch_size, "class_token": vit.class_token,
    })
}

fn fingerprint(files: &VisionFiles, tensors: &[Expected]) -> Result<Fingerprint> {
    let mut values = Vec::new();
    let mut formats = Vec::new();
    for e in tensors {
        let raw = files.raw(&e.name)?;
        values.extend(raw.sampled(SAMPLED_ROWS)?);
        formats.push(raw.format);
    }
    Ok(Fingerprint::of_values(&values, &formats))
}
