//! Models that see: towers and whole models against transformers, on every device; damaged folders; typed commands.

mod common;

#[cfg(all(feature = "images", feature = "cli"))]
use common::cli::{answer_to, mixlora, output};
use common::edit::Edit;
use mixlora::Device;
use mixlora::check::golden::{Replay, find_files, replay};
use mixlora::io::{Checkpoint, GgufFile};
use mixlora::model::vision::{Feature, ProjectorKind, TowerConfig, VisionConfig, VisionFiles};
use mixlora::model::{LoadOptions, Model, vision::VisionModel};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    common::edit::golden().join("vision")
}

fn files() -> Vec<PathBuf> {
    let all = find_files(&[golden()]).unwrap();
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    all.into_iter()
        .filter(|path| name(path).starts_with("tower_") || name(path).starts_with("expected"))
        .collect()
}

fn all_hold(device: &Device) {
    let files = files();
    assert_eq!(files.len(), 4);
    for path in files {
        let r = replay(&path, device).unwrap();
        assert!(r.holds() && r.errors.len() >= 6, "{}: {r:?}", device.name());
    }
}

#[test]
fn the_reference_holds() {
    all_hold(&Device::reference());
}

#[test]
fn the_cpu_holds() {
    all_hold(&Device::cpu());
}

#[test]
fn the_gpu_holds() {
    if let Some(gpu) = common::gpu() {
        all_hold(&gpu);
    }
}

/// A copy of a model's folder.
fn copy(model: &str, to: &Path) {
    for entry in std::fs::read_dir(golden().join(model)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_changed_value_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let measured = |r: &Replay, name: &str| {
        let of_name = r.errors.iter().find(|measured| measured.name == name);
        of_name.is_some_and(|measured| !measured.holds())
    };
    for name in ["hidden_states", "pooled", "feature", "grad.pixel_values", "grad.embeddings.class_embedding"]
    {
        let tower = golden().join("tower_clip_w32_p8_24_at_40x32.safetensors");
        let changed = Edit::open(&tower).value(name, 3, |v| 1.5 * v + 0.1).write(folder.path(), "tower");
        let r = replay(&changed, &Device::cpu()).unwrap();
        assert!(measured(&r, name), "{name}: {r:?}");
    }
    copy("vlm_llava15_new_names", folder.path());
    let expected = folder.path().join("expected.safetensors");
    for name in
        ["image_features", "logits", "first_logits_grey", "grad.model.multi_modal_projector.linear_1.bias"]
    {
        Edit::open(&golden().join("vlm_llava15_new_names/expected.safetensors"))
            .value(name, 3, |v| 1.5 * v + 1.0)
            .write(folder.path(), "expected");
        let r = replay(&expected, &Device::cpu()).unwrap();
        assert!(measured(&r, name), "{name}: {r:?}");
    }
}

#[test]
fn defaults_are_those_of_the_class() {
    let of = |value: Value| TowerConfig::from_json(&value).unwrap();
    let clip = of(json!({ "model_type": "clip_vision_model" }));
    assert_eq!((clip.image_size, clip.patch_size, clip.layers.num_hidden_layers), (224, 32, 12));
    assert_eq!((clip.grid(), clip.rows(49), clip.patch_values()), (7, 50, 3072));
    let siglip = of(json!({ "model_type": "siglip_vision_model" }));
    assert_eq!((siglip.patch_size, siglip.class_token, siglip.layers.norm.eps), (16, false, 1e-6));
    let idefics3 = of(json!({ "model_type": "idefics3_vision" }));
    assert_eq!((idefics3.layers.hidden_size, idefics3.layers.head_dim), (1152, 72));

    // A LLaVA that says nothing is LLaVA-1.5: CLIP-L/14 at 336 pixels, the states before the last layer, no class token.
    let llava = VisionConfig::from_json(&json!({ "model_type": "llava" }), 4096).unwrap().unwrap();
    assert_eq!((llava.rows(), llava.feature.layer, llava.image_token), (576, 23, 32_000));
    assert!(matches!(llava.projector, ProjectorKind::Mlp(_)) && !llava.feature.class_token);
    let small = json!({ "model_type": "smolvlm", "scale_factor": 4, "image_token_id": 49_190,
        "vision_config": { "model_type": "smolvlm_vision", "hidden_size": 768, "num_attention_heads": 12, "image_size": 512, "patch_size": 16 } });
    assert_eq!(VisionConfig::from_json(&small, 576).unwrap().unwrap().rows(), 64);
    assert_eq!(VisionConfig::from_json(&json!({ "model_type": "llama" }), 64).unwrap(), None);
}

#[test]
fn configurations_that_cannot_be_name_the_field() {
    let refused = |value: Value, field: &str| {
        let e = VisionConfig::from_json(&value, 64).unwrap_err().to_string();
        assert!(e.contains(field), "{e}");
    };
    let llava = |more: Value| {
        let mut all = json!({ "model_type": "llava" });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    refused(llava(json!({ "vision_config": { "model_type": "dinov2" } })), "dinov2");
    refused(llava(json!({ "vision_config": { "patch_size": 0 } })), "patch_size");
    refused(llava(json!({ "vision_config": { "patch_size": "14" } })), "vision_config");
    refused(llava(json!({ "vision_config": { "num_channels": 1 } })), "num_channels");
    refused(llava(json!({ "vision_feature_layer": [-2, -5] })), "vision_feature_layer");
    refused(llava(json!({ "vision_feature_layer": -26 })), "vision_feature_layer");
    refused(llava(json!({ "vision_feature_select_strategy": "cls" })), "vision_feature_select_strategy");
    refused(llava(json!({ "image_token_index": -200 })), "image_token_index");
    refused(json!({ "model_type": "idefics3", "scale_factor": 4 }), "scale_factor");
}

#[test]
fn damaged_folders_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    copy("vlm_llava15_new_names", folder.path());
    let config = folder.path().join("config.json");
    let original: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    let refused = |edit: fn(&mut Value), text: &str| {
        let mut value = original.clone();
        edit(&mut value);
        std::fs::write(&config, value.to_string()).unwrap();
        let model = Model::open(folder.path(), &Device::cpu(), false).unwrap();
        let Err(e) = VisionModel::open(folder.path(), &model, LoadOptions::default(), false) else {
            panic!("{text}")
        };
        assert!(e.to_string().contains(text), "{e}");
    };
    refused(
        |c| c["vision_config"]["intermediate_size"] = 64.into(),
        "fc1.weight' is [56, 24], expected [64, 24]",
    );
    refused(
        |c| c["vision_config"]["image_size"] = 32.into(),
        "position_embedding.weight' is [10, 24], expected [17, 24]",
    );
    refused(|c| c["vision_config"]["num_hidden_layers"] = 3.into(), "layers.2.");
    refused(|c| c["image_token_index"] = 334.into(), "the image token is 334");
    // The decoder reads its own part of the configuration.
    let mut value = original.clone();
    value["text_config"]["hidden_size"] = 64.into();
    std::fs::write(&config, value.to_string()).unwrap();
    assert!(Model::open(folder.path(), &Device::cpu(), false).is_err());

    let file = Checkpoint::open(golden().join("png_rgba_60x45.safetensors")).unwrap();
    let e = VisionFiles::of_checkpoint(file).unwrap_err().to_string();
    assert!(e.contains("no vision tower"), "{e}");
    let decoder = common::edit::golden().join("models/qwen3-b/model-f16.gguf");
    if decoder.is_file() {
        let e = VisionConfig::of_gguf(&GgufFile::open(&decoder).unwrap(), 0).unwrap_err().to_string();
        assert!(e.contains("no vision file"), "{e}");
    }
}

#[test]
fn layers_behind_the_features_are_not_needed() {
    let config =
        TowerConfig::from_json(&json!({ "model_type": "clip_vision_model", "num_hidden_layers": 4 }))
            .unwrap();
    let names = |layer: i64| {
        let feature = Feature::behind(&config, layer, false).unwrap();
        config.tensors(feature).into_iter().map(|e| e.name).collect::<Vec<_>>()
    };
    let two = names(-3);
    assert!(two.iter().any(|n| n.contains("layers.1.")) && !two.iter().any(|n| n.contains("layers.2.")));
    assert!(!names(-1).iter().any(|n| n.contains("post_layernorm")));
}

/// The first picture of a model's samples, as a file.
#[cfg(all(feature = "images", feature = "cli"))]
fn picture(folder: &Path) -> String {
    let file = Checkpoint::open(golden().join("vlm_idefics3/expected.safetensors")).unwrap();
    let path = folder.join("picture.png");
    std::fs::write(&path, file.tensor_bytes("image.0.0").unwrap()).unwrap();
    path.to_string_lossy().into_owned()
}

#[cfg(all(feature = "images", feature = "cli"))]
#[test]
fn a_user_asks_about_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let picture = picture(folder.path());
    let model = golden().join("vlm_idefics3").to_string_lossy().into_owned();
    let ask = |more: &[&str]| {
        let args = ["generate", "--model", &model, "-n", "8", "How many shapes are there?"];
        output(mixlora(&[&args[..], more].concat()), 0)
    };
    let (seen, note) = ask(&["--image", &picture]);
    // 6 tiles of 4 rows each, their tags, and the question.
    assert!(note.contains("prompt 61 tokens"), "{note}");
    assert_ne!(seen, ask(&[]).0, "the picture changes the answer");
    let (two, note) = ask(&["--image", &picture, "--image", &picture]);
    assert!(two != seen && note.contains("tokens"), "{note}");

    let args = ["chat", "--model", &model, "-n", "8"];
    let question = format!("/image {picture}\nHow many shapes are there?\n/image /nowhere.png\nAnd now?\n");
    let (said, notes) = answer_to(&args, &question, 0);
    assert_eq!(said.lines().next(), seen.lines().next(), "a chat sees what generate sees");
    assert!(notes.contains("/nowhere.png"), "{notes}");
    let (again, _) =
        answer_to(&[&args[..], &["--image", &picture]].concat(), "How many shapes are there?\n", 0);
    assert_eq!(again, seen);
}

#[cfg(all(feature = "images", feature = "cli"))]
#[test]
fn pictures_that_cannot_be_seen_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let picture = picture(folder.path());
    let seeing = golden().join("vlm_idefics3").to_string_lossy().into_owned();
    let refused = |model: &str, more: &[&str], text: &str| {
        let args = [&["generate", "--model", model, "-n", "2"][..], more].concat();
        let (out, err) = output(mixlora(&args), 3);
        assert!(out.is_empty() && err.contains(text), "{err}");
    };
    refused(&seeing, &["--image", "/nowhere.png", "What?"], "/nowhere.png");
    refused(&seeing, &["--image", &picture, "--raw", "What <image> and <image>?"], "2 places of pictures");
    refused(&seeing, &["What <image> is it?"], "1 places of pictures");
}
