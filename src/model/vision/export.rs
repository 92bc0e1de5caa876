//! Writing tower and projector as a GGUF file (mmproj), for llama.cpp.

use super::files::gguf_name;
use super::mmproj::ARCHITECTURE;
use super::{ProjectorKind, TowerConfig, VisionConfig, VisionModel, VisionPlace};
use crate::io::gguf::{Array, GgufWriter, Value};
use crate::model::Activation;
use crate::picture::{Fit, Processor};
use crate::{Error, Result};
use std::path::Path;

impl VisionModel {
    /// Writes tower and projector, as it is now, as a GGUF file that llama.cpp loads with `--mmproj` beside the decoder's
    /// file. All values are f32; of a tower the layers up to the features. `place` is where it was opened.
    ///
    /// Size, mean and std of pictures are written, and the longest edge where they are cut into tiles. Whether pictures are
    /// cropped or padded has no key in such files.
    ///
    /// # Errors
    /// The files have no word for what the model computes, or the file cannot be written.
    pub fn export_gguf(&self, place: &VisionPlace, processor: &Processor, path: &Path) -> Result<()> {
        let mut file = GgufWriter::default();
        describe(&self.config, &mut file)?;
        describe_pictures(&self.config, processor, &mut file)?;
        let files = place.files()?;
        let projector = self.projector.params();
        for e in self.config.tensors() {
            let values = match projector.iter().find(|p| p.name() == e.name) {
                Some(param) => param.value().to_f32()?,
                None => files.raw(&e.name)?.values()?,
            };
            // Innermost first.
            let dims = e.axes.iter().rev().map(|axis| axis.0).collect();
            file.tensor(gguf_name(&e.name, false), dims, values);
        }
        file.write(path)
    }
}

/// What cannot be said in such a file.
fn no_word(what: &str) -> Error {
    Error::refused("mmproj", format!("files have no word for {what}; llama.cpp would compute something else"))
}

/// What is computed, as llama.cpp's converters write it.
fn describe(config: &VisionConfig, file: &mut GgufWriter) -> Result<()> {
    let TowerConfig::Vit(tower) = &config.tower else {
        return Err(no_word("a convolutional tower"));
    };
    let clip = !matches!(config.projector, ProjectorKind::Shuffle { .. });
    if clip != tower.class_token {
        return Err(no_word("a CLIP tower with a pixel shuffle, or a SigLIP tower with an MLP"));
    }
    if config.feature.class_token {
        return Err(no_word("features with the class token (vision_feature_select_strategy: full)"));
    }
    if clip != config.projector_bias {
        return Err(no_word("an MLP without biases"));
    }
    if tower.layers.activation == Activation::GeluErf {
        return Err(no_word("a tower with the exact GELU"));
    }
    for (key, text) in [
        ("general.architecture", ARCHITECTURE),
        ("general.type", "mmproj"),
        ("clip.projector_type", if clip { "mlp" } else { "idefics3" }),
    ] {
        file.set(key, Value::String(text.into()));
    }
    file.set("clip.has_vision_encoder", Value::Bool(true));
    if clip {
        file.set("clip.has_text_encoder", Value::Bool(false));
        file.set("clip.has_llava_projector", Value::Bool(true));
        let layer = config.feature.layer as i32;
        file.set("clip.vision.feature_layer", Value::Array(Array::I32(vec![layer])));
    }
    // Neither of the two is the form with a logistic function.
    file.set("clip.use_gelu", Value::Bool(tower.layers.activation == Activation::Gelu));
    if tower.layers.activation == Activation::Silu {
        file.set("clip.use_silu", Value::Bool(true));
    }
    file.set("general.file_type", Value::U32(0));
    if let ProjectorKind::Shuffle { factor } = config.projector {
        file.set("clip.vision.projector.scale_factor", Value::U32(factor as u32));
    }
    for (key, number) in [
        ("image_size", tower.image_size),
        ("patch_size", tower.patch_size),
        ("embedding_length", tower.layers.hidden_size),
        ("feed_forward_length", tower.layers.intermediate_size),
        ("projection_dim", config.width),
        ("attention.head_count", tower.layers.num_attention_heads),
        ("block_count", config.feature.layer),
    ] {
        file.set(&format!("clip.vision.{key}"), Value::U32(number as u32));
    }
    file.set("clip.vision.attention.layer_norm_epsilon", Value::F32(tower.layers.norm.eps));
    Ok(())
}

/// What is known there of the preparation of pictures.
fn describe_pictures(config: &VisionConfig, processor: &Processor, file: &mut GgufWriter) -> Result<()> {
    let side = config.tower.image_size();
    let seen = processor.layout(side, side)?;
    if [seen.height, seen.width] != [side, side] {
        let what = format!("pictures of {} x {} pixels for a tower of {side}", seen.height, seen.width);
        return Err(no_word(&what));
    }
    if (255.0 * processor.rescale - 1.0).abs() > 1e-6 {
        return Err(no_word(&format!("a rescale_factor of {}", processor.rescale)));
    }
    if let Fit::Tiles { longest, tile, split } = processor.fit {
        let longest = if split { longest } else { tile };
        file.set("clip.vision.preproc_image_size", Value::U32(longest as u32));
    }
    for (key, values) in [("image_mean", processor.mean), ("image_std", processor.std)] {
        file.set(&format!("clip.vision.{key}"), Value::Array(Array::F32(values.to_vec())));
    }
    Ok(())
}
