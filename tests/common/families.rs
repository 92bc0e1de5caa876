//! The tiny models that `fixtures/make_families.py` wrote, and their stored logits.

use mixlora::adapter::Adapter;
use mixlora::io::Checkpoint;
use mixlora::mixture::Units;
use mixlora::model::{Model, Step};
use mixlora::nn::Pass;
use mixlora::{Device, Result, Tensor, no_grad};
use std::path::{Path, PathBuf};

pub const VOCAB: usize = 48;

/// A file or folder of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The folders of the models with reference values, or those that `MIXLORA_GOLDEN_MODELS` names.
pub fn models() -> Vec<PathBuf> {
    let stored = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let folder = std::env::var_os("MIXLORA_GOLDEN_MODELS").map_or(stored, PathBuf::from);
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|path| path.join("config.json").is_file()).collect();
    found.sort();
    assert!(!found.is_empty(), "no models in {}", folder.display());
    found
}

pub fn open(name: &str) -> std::sync::Arc<Model> {
    Model::open(&fixture("families").join(name), &Device::cpu()).unwrap()
}

/// Logits of one sequence.
pub fn logits(model: &Model, ids: &[u32]) -> Result<Vec<f32>> {
    adapted_logits(model, None, ids)
}

/// Logits of one sequence with an adapter.
pub fn adapted_logits(model: &Model, adapter: Option<&Adapter>, ids: &[u32]) -> Result<Vec<f32>> {
    let adapters = adapter.map(|a| a.sites().clone());
    no_grad(|| {
        let t = Tensor::from_u32(model.device(), &[1, ids.len()], ids)?;
        let pass = Pass::new(Units::instances(model.device(), 1, ids.len())?).with_adapters(adapters.clone());
        model.logits(&model.forward(&t, &pass, Step::default())?)?.to_f32()
    })
}

/// The stored sequences of a family and their logits.
pub fn stored(family: &str) -> Vec<(Vec<u32>, Vec<f32>)> {
    let file = Checkpoint::open(fixture("families").join(family).join("logits.safetensors")).unwrap();
    let sequence = |i: usize| {
        let name = format!("ids_{i}");
        let n = file.dims(&name).ok()?[0];
        let logits = file.f32(&format!("logits_{i}"), &[n, VOCAB]).unwrap();
        Some((file.indices(&name, &[n], VOCAB).unwrap(), logits))
    };
    (0..).map_while(sequence).collect()
}

/// The largest difference.
pub fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |w, (a, b)| w.max((a - b).abs()))
}

/// Bytes with every occurrence of a text replaced by another of the same length.
pub fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let places = bytes.windows(from.len()).enumerate().filter(|(_, w)| w == &from).map(|(i, _)| i);
    places.for_each(|i| out[i..i + to.len()].copy_from_slice(to));
    out
}

/// Copies a folder into a new one.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let place = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &place);
        } else {
            std::fs::copy(&path, place).unwrap();
        }
    }
}
