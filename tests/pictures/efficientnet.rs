//! EfficientNet-Lite as a tower: values of its own Python package (fixtures/make_efficientnet.py), on every device;
//! `MIXLORA_EFFICIENTNET` names a folder with the trained Lite0. The file of PyTorch, and folders of towers.
#![cfg(feature = "images")]

use mixlora::io::{Checkpoint, PthFile, read_json};
use mixlora::mixture::Units;
use mixlora::model::LoadOptions;
use mixlora::model::vision::{
    Classifier, EfficientNetConfig, Feature, Tower, TowerConfig, VisionConfig, VisionFiles, write_tower,
};
use mixlora::nn::Pass;
use mixlora::picture::{Picture, Processor};
use mixlora::{Device, Tensor, no_grad};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Largest difference from the package's logits and features. Measured: docs/IMAGES.md.
const BOUND: f32 = 1e-4;

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/efficientnet")
}

/// The pictures that the script draws.
fn pictures() -> [Picture; 5] {
    let sizes = [(150, 120), (97, 200), (64, 64), (301, 40), (33, 35)];
    std::array::from_fn(|number| {
        let (width, height) = sizes[number];
        let byte = |at: usize| {
            let c = at % 3;
            let x = at / 3 % width;
            let y = at / 3 / width;
            (((x * (number + 2)) ^ (y * (c + 3))) + x * y * (number + 1) / 16) as u8
        };
        Picture::new(width, height, (0..3 * width * height).map(byte).collect()).unwrap()
    })
}

fn config(folder: &Path, side: usize) -> EfficientNetConfig {
    let mut value: Value = read_json(&folder.join("config.json")).unwrap();
    value["image_size"] = json!(side);
    EfficientNetConfig::from_json(&value).unwrap()
}

/// All pictures as the tower of a folder reads them.
fn pixels(folder: &Path, side: usize, device: &Device) -> Tensor {
    let processor = Processor::of_model(folder).unwrap();
    let values: Vec<f32> =
        pictures().iter().flat_map(|picture| processor.values(&processor.tiles(picture).unwrap())).collect();
    Tensor::from_f32(device, &[5, 3, side, side], &values).unwrap()
}

fn difference(found: &Tensor, expected: &Checkpoint, name: &str) -> f32 {
    let expected = expected.f32(name, found.dims()).unwrap();
    let pairs = found.to_f32().unwrap().into_iter().zip(expected);
    // What is no number stays one.
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |worst, new| if new <= worst { worst } else { new })
}

/// Logits and features of all pictures are those of the package.
fn agrees(stored: &Path, sides: &[usize], device: &Device) {
    let expected = Checkpoint::open(stored.join("expected.safetensors")).unwrap();
    for &side in sides {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("tower");
        let config = config(stored, side);
        write_tower(&stored.join("model.pth"), &config, &folder).unwrap();
        let tower = Tower::open(&folder, device, &LoadOptions::default()).unwrap();
        let pixels = pixels(&folder, side, device);
        let pass = Pass::new(Units::tokens(0));
        let features = no_grad(|| tower.forward(&pixels, &pass, None)).unwrap();
        let files = VisionFiles::of_checkpoint(Checkpoint::open(&folder).unwrap()).unwrap();
        let classifier = Classifier::load(&config, &files, device, &LoadOptions::default()).unwrap();
        let logits = no_grad(|| classifier.logits(&pixels)).unwrap();
        let worst = [
            difference(&features, &expected, &format!("features.{side}")),
            difference(&logits, &expected, &format!("logits.{side}")),
        ];
        println!("{side} px on {}: features {:.1e}, logits {:.1e}", device.name(), worst[0], worst[1]);
        assert!(worst.iter().all(|&worst| worst < BOUND), "{side} px on {}: {worst:?}", device.name());
    }
}

#[test]
fn the_reference_agrees_with_the_package() {
    agrees(&tiny(), &[72], &Device::reference());
}

#[test]
fn the_cpu_agrees_with_the_package() {
    agrees(&tiny(), &[72], &Device::cpu());
}

#[test]
fn the_gpu_agrees_with_the_package() {
    if let Some(gpu) = crate::common::gpu() {
        agrees(&tiny(), &[72], &gpu);
    }
}

/// The trained network, and the time of one picture: the best of 50.
#[test]
fn lite0_agrees_with_the_package() {
    let Some(folder) = std::env::var_os("MIXLORA_EFFICIENTNET").map(PathBuf::from) else { return };
    agrees(&folder, &[128, 224], &Device::cpu());
    if let Some(gpu) = crate::common::gpu() {
        agrees(&folder, &[128, 224], &gpu);
    }
    let cpu = Device::cpu();
    let place = tempfile::tempdir().unwrap();
    let written = place.path().join("tower");
    write_tower(&folder.join("model.pth"), &config(&folder, 128), &written).unwrap();
    let tower = Tower::open(&written, &cpu, &LoadOptions::default()).unwrap();
    for count in [1, 16] {
        let pixels = Tensor::full(&cpu, &[count, 3, 128, 128], 0.1).unwrap();
        let run = || {
            let started = Instant::now();
            let features = no_grad(|| tower.forward(&pixels, &Pass::new(Units::tokens(0)), None)).unwrap();
            assert_eq!(features.to_f32().unwrap().len(), count * 16 * 320);
            started.elapsed().as_secs_f64() * 1e3 / count as f64
        };
        println!(
            "{count} pictures of 128 px: {:.2} ms each",
            (0..50).map(|_| run()).fold(f64::MAX, f64::min)
        );
    }
}

#[test]
fn features_are_the_states_behind_a_block() {
    let cpu = Device::cpu();
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("tower");
    write_tower(&tiny().join("model.pth"), &config(&tiny(), 72), &folder).unwrap();
    let pixels = pixels(&folder, 72, &cpu);
    let pass = Pass::new(Units::tokens(0));
    let tower = Tower::open(&folder, &cpu, &LoadOptions::default()).unwrap();
    assert!(tower.sites().is_empty());
    let mut hidden = Vec::new();
    let last = no_grad(|| tower.forward(&pixels, &pass, Some(&mut hidden))).unwrap();
    assert_eq!((last.dims(), hidden.len()), (&[5, 9, 16][..], 10));
    let config = tower.config();
    for layer in [0, 3, 9] {
        let files = VisionFiles::of_checkpoint(Checkpoint::open(&folder).unwrap()).unwrap();
        let feature = Feature::behind(config, layer, false).unwrap();
        let part = Tower::load(config.clone(), feature, &files, &cpu, &LoadOptions::default()).unwrap();
        let states = no_grad(|| part.forward(&pixels, &pass, None)).unwrap();
        let grid = config.grid(feature);
        assert_eq!(states.dims(), [5, grid * grid, config.width(feature)]);
        assert_eq!(states.to_f32().unwrap(), hidden[layer as usize].to_f32().unwrap());
    }
    // Other sides than those of the configuration.
    let wide = Tensor::full(&cpu, &[1, 3, 40, 100], 0.5).unwrap();
    assert_eq!(no_grad(|| tower.forward(&wide, &pass, None)).unwrap().dims(), [1, 8, 16]);
    let grey = Tensor::full(&cpu, &[1, 1, 72, 72], 0.5).unwrap();
    assert!(tower.forward(&grey, &pass, None).is_err());
}

#[test]
fn a_model_that_sees_may_have_such_a_tower() {
    let all = json!({ "model_type": "llava", "vision_feature_layer": -1, "image_token_index": 5,
        "vision_config": { "model_type": "efficientnet-lite0", "image_size": 128 } });
    let vision = VisionConfig::from_json(&all, 576).unwrap().unwrap();
    assert_eq!((vision.rows(), vision.feature.layer), (16, 16));
    assert_eq!(vision.tower.width(vision.feature), 320);
    let projector = vision.tensors().into_iter().find(|e| e.name == "multi_modal_projector.linear_1.weight");
    assert_eq!(projector.unwrap().axes.iter().map(|axis| axis.0).collect::<Vec<_>>(), [576, 320]);
    assert!(matches!(vision.tower, TowerConfig::EfficientNet(_)));
    let lite9 = json!({ "model_type": "efficientnet-lite9" });
    let error = TowerConfig::from_json(&lite9).unwrap_err().to_string();
    assert!(error.contains("'efficientnet-lite9'") && error.contains("efficientnet-lite0"), "{error}");
}

#[test]
fn the_file_of_pytorch_is_read_and_not_run() {
    let path = tiny().join("model.pth");
    let file = PthFile::open(&path).unwrap();
    assert_eq!(file.dims("_conv_stem.weight").unwrap(), [4, 3, 3, 3]);
    // One counter for each of the batch norms.
    assert_eq!((file.names().count(), file.left_out().len()), (142, 28));
    assert!(file.left_out().iter().all(|name| name.ends_with("num_batches_tracked")));

    let whole = std::fs::read(&path).unwrap();
    let refused = |bytes: Vec<u8>, what: &str| {
        let error = PthFile::from_bytes("model.pth", bytes).err().map_or("read".into(), |e| e.to_string());
        assert!(error.contains(what), "{what}: {error}");
    };
    for length in [0, 14, 20, 1000, 20_000, whole.len() - 1] {
        assert!(PthFile::from_bytes("model.pth", whole[..length].to_vec()).is_err(), "{length}");
    }
    let swapped = |from: &str, to: &str| {
        let at = whole.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        [&whole[..at], to.as_bytes(), &whole[at + from.len()..]].concat()
    };
    refused(swapped("torch\nFloatStorage", "os\nsystem"), "names os.system");
    refused(swapped("torch\nFloatStorage", "torch\nHalfStorage"), "names torch.HalfStorage");
    refused([b"PK\x03\x04", &whole[..]].concat(), "is a zip archive");
    refused([&whole[..], b"more"].concat(), "goes on behind its last value");
}

#[test]
fn folders_are_written_of_what_fits() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("tower");
    let refused = |config: &EfficientNetConfig, what: &str| {
        let error = write_tower(&tiny().join("model.pth"), config, &folder).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("model.pth") && !folder.exists(), "{error}");
    };
    refused(&EfficientNetConfig::default(), "_conv_stem.weight' is [4, 3, 3, 3], expected [32, 3, 3, 3]");
    let mut more = config(&tiny(), 72);
    more.stages[6].num_blocks = 2;
    refused(&more, "'_blocks.9._expand_conv.weight' is missing");
    // A variance below 0 has no square root.
    write_tower(&tiny().join("model.pth"), &config(&tiny(), 72), &folder).unwrap();
    let weights = Checkpoint::open(&folder).unwrap();
    let named = |name: &str| {
        let dims = weights.dims(name).unwrap().to_vec();
        let mut values = weights.values_f32(name).unwrap();
        if name == "_blocks.2._bn1.running_var" {
            values[1] = -0.5;
        }
        mixlora::io::Named { name: name.into(), dims, values }
    };
    let bytes = mixlora::io::safetensors_bytes(weights.names().map(named).collect()).unwrap();
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    let error = Tower::open(&folder, &Device::cpu(), &LoadOptions::default()).err().unwrap().to_string();
    assert!(error.contains("_blocks.2._bn1.running_var") && error.contains("-0.5"), "{error}");
}
