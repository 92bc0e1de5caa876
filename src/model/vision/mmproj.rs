//! Towers and projectors in GGUF files, as llama.cpp has them beside a decoder's file (`mmproj`).

use super::vit_config::TowerFacts;
use super::{Feature, ProjectorKind, TowerConfig, VisionConfig, VisionFiles, VitConfig};
use crate::io::GgufFile;
use crate::model::Activation;
use crate::{Error, Result};

/// The architecture that such files name.
pub(super) const ARCHITECTURE: &str = "clip";

impl VisionConfig {
    /// The vision part of an open GGUF file; `image_token` is the decoder's token that stands for a picture's row.
    ///
    /// # Errors
    /// It is no such file, its projector is of a kind that is not read, or an entry is missing.
    pub fn of_gguf(file: &GgufFile, image_token: u32) -> Result<Self> {
        let fail = |what: String| Err(Error::file(file.path(), what));
        if file.str("general.architecture")? != ARCHITECTURE {
            return fail(format!("is no vision file: general.architecture is not '{ARCHITECTURE}'"));
        }
        let kind =
            if file.get("clip.projector_type").is_some() { file.str("clip.projector_type")? } else { "mlp" };
        if !matches!(kind, "mlp" | "idefics3") {
            return fail(format!("clip.projector_type is '{kind}'; mlp and idefics3 are read"));
        }
        let merge = "clip.vision.mm_patch_merge_type";
        if file.get(merge).is_some() && file.str(merge)?.starts_with("spatial") {
            return fail(format!("{merge} is that of LLaVA-NeXT, which is not read"));
        }
        let tower = TowerConfig::Vit(Box::new(tower(file, kind == "mlp")?));
        let width = |name: &str| file.tensor(name).map(|tensor| tensor.rows());
        if kind == "idefics3" {
            let factor = file.u32("clip.vision.projector.scale_factor")? as usize;
            let feature = Feature::last(&tower);
            let grid = tower.grid(feature);
            if factor == 0 || !grid.is_multiple_of(factor) {
                return fail(format!(
                    "clip.vision.projector.scale_factor is {factor} for {grid} patches a side"
                ));
            }
            let projector = ProjectorKind::Shuffle { factor };
            let width = width("mm.model.fc.weight")?;
            return Ok(VisionConfig { tower, feature, projector, projector_bias: false, width, image_token });
        }
        let feature = Feature { layer: tower.layers(), norm: false, class_token: false };
        let single = file.tensor("mm.2.weight").is_err();
        let projector = if single { ProjectorKind::Linear } else { ProjectorKind::Mlp(Activation::GeluErf) };
        let width = width("mm.0.weight")?;
        Ok(VisionConfig { tower, feature, projector, projector_bias: true, width, image_token })
    }
}

/// The tower of a file; that of a LLaVA has the layers up to its features alone.
fn tower(file: &GgufFile, clip: bool) -> Result<VitConfig> {
    let number = |name: &str| file.u32(&format!("clip.vision.{name}")).map(|n| Some(n as usize));
    let flag = |key: &str| if file.get(key).is_some() { file.bool(key) } else { Ok(false) };
    let activation = match (flag("clip.use_gelu")?, flag("clip.use_silu")?) {
        (true, _) => "gelu_pytorch_tanh",
        (_, true) => "silu",
        _ => "quick_gelu",
    };
    let class = if clip { "clip_vision_model" } else { "idefics3_vision" };
    let facts = TowerFacts {
        model_type: Some(class.into()),
        hidden_size: number("embedding_length")?,
        intermediate_size: number("feed_forward_length")?,
        num_hidden_layers: number("block_count")?,
        num_attention_heads: number("attention.head_count")?,
        image_size: number("image_size")?,
        patch_size: number("patch_size")?,
        hidden_act: Some(activation.into()),
        layer_norm_eps: Some(file.f32("clip.vision.attention.layer_norm_epsilon")?),
        num_channels: None,
    };
    VitConfig::of_class(facts, None).map_err(|error| Error::file(file.path(), error.to_string()))
}

impl VisionFiles {
    /// The vision part of a GGUF file, with its configuration.
    ///
    /// # Errors
    /// Those of [`VisionConfig::of_gguf`].
    pub fn open_gguf(file: GgufFile, image_token: u32) -> Result<(Self, VisionConfig)> {
        let config = VisionConfig::of_gguf(&file, image_token)?;
        let inside = file.u32("clip.vision.feed_forward_length")? as usize;
        let files = VisionFiles::of_gguf(file, inside)?;
        Ok((files, config))
    }
}
