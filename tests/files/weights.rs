//! Models whose matrices are held in another format than their files have.

use crate::common::families;
use crate::common::tiny::{write_model, write_model_of};
use mixlora::model::{LoadOptions, Model, ModelFiles, Weights};
use mixlora::{Device, Format};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const VOCAB: usize = 80;

/// A folder with a model of rows of 256, and one for a cache.
fn place() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    write_model_of(&model, [256, 512], VOCAB, 32);
    let cache = dir.path().join("cache");
    (dir, model, cache)
}

fn load(model: &Path, weights: &str, cache: Option<&Path>) -> mixlora::Result<Arc<Model>> {
    let weights = weights.parse()?;
    let options = LoadOptions { weights, cache: cache.map(PathBuf::from), ..LoadOptions::default() };
    Model::load(&ModelFiles::open(model)?, &Device::cpu(), &options)
}

fn logits(model: &Model) -> Vec<f32> {
    families::logits(model, &[3, 44, 75, 26, 8]).unwrap()
}

fn kept(cache: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(cache.join("weights")).unwrap().map(|entry| entry.unwrap().path());
    let files = |folder: PathBuf| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> = folders.flat_map(files).collect();
    all.sort();
    all
}

/// The root mean square of the differences, in parts of that of the values.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
    (squares(&mut a.iter().zip(b).map(|(a, b)| a - b)) / squares(&mut a.iter().copied())).sqrt()
}

#[test]
fn each_format_gives_nearly_the_same_model_in_less_memory() {
    let (_dir, model, _) = place();
    let plain = load(&model, "file", None).unwrap();
    let want = logits(&plain);
    // The better a format is, the nearer it stays.
    let mut before = 0;
    for (name, near) in
        [("f32", 0.0), ("bf16", 0.01), ("q8_0", 0.03), ("q6_k", 0.08), ("q5_0", 0.3), ("q4_k", 0.5)]
    {
        let other = load(&model, name, None).unwrap();
        assert_eq!(other.notes(), Vec::<String>::new(), "{name}");
        assert_eq!(other.head().format().name(), name);
        let far = apart(&want, &logits(&other));
        println!("{name}: {far}");
        assert!(far <= near && (far > 0.0 || near == 0.0), "{name}: {far}");
        let bytes = other.head().bytes();
        assert!(before == 0 || bytes < before, "{name}: {bytes} bytes");
        before = bytes;
    }
}

#[test]
fn rows_of_other_lengths_fall_back_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    // Rows of 64 and 96.
    write_model(dir.path(), VOCAB, 32);
    for (weights, instead) in [("q4_k", "q5_0"), ("q6_k", "q8_0"), ("q5_k", "q5_1")] {
        let model = load(dir.path(), weights, None).unwrap();
        assert_eq!(model.head().format().name(), instead);
        let note = format!(
            "15 matrices have rows that are no multiple of what {weights} needs, and {instead} instead"
        );
        assert_eq!(model.notes(), [note]);
    }
}

#[test]
fn what_a_search_quantised_is_read_the_next_time() {
    let (_dir, model, cache) = place();
    let plain = logits(&load(&model, "q4_k", None).unwrap());
    let first = load(&model, "q4_k", Some(&cache)).unwrap();
    assert_eq!((first.notes(), logits(&first)), (&[][..], plain.clone()));
    let files = kept(&cache);
    assert_eq!(files.len(), 1);
    let written = std::fs::metadata(&files[0]).unwrap().modified().unwrap();
    let second = load(&model, "q4_k", Some(&cache)).unwrap();
    assert_eq!((second.notes(), logits(&second)), (&[][..], plain.clone()));
    // Read, and not written again.
    assert_eq!(
        (kept(&cache), std::fs::metadata(&files[0]).unwrap().modified().unwrap()),
        (files.clone(), written)
    );
    // Formats that take no search are not kept.
    load(&model, "q8_0", Some(&cache)).unwrap();
    assert_eq!(kept(&cache).len(), 1);
    // Those of another format, and of another model, are others.
    load(&model, "q6_k", Some(&cache)).unwrap();
    assert_eq!(kept(&cache).len(), 2);
    write_model_of(&model, [256, 768], VOCAB, 32);
    let other = logits(&load(&model, "q4_k", Some(&cache)).unwrap());
    assert_eq!((kept(&cache).len(), other), (3, logits(&load(&model, "q4_k", None).unwrap())));
}

#[test]
fn a_gpu_has_the_weights_that_a_cpu_has() {
    let Some(gpu) = crate::common::gpu() else { return };
    let (_dir, model, cache) = place();
    let want = load(&model, "q4_k", None).unwrap().head().to_f32().unwrap();
    // Quantised, kept, and read again.
    for cache in [None, Some(cache.clone()), Some(cache)] {
        let options = LoadOptions { weights: Format::Q4_K.into(), cache, ..LoadOptions::default() };
        let on_gpu = Model::load(&ModelFiles::open(&model).unwrap(), &gpu, &options).unwrap();
        assert_eq!((on_gpu.notes(), on_gpu.head().format()), (&[][..], Format::Q4_K));
        assert_eq!(on_gpu.head().to_f32().unwrap(), want);
    }
}

#[test]
fn damaged_kept_weights_are_quantised_again() {
    let (_dir, model, cache) = place();
    let plain = logits(&load(&model, "q4_k", Some(&cache)).unwrap());
    let file = kept(&cache).remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 64;
    std::fs::write(&file, bytes).unwrap();
    let again = load(&model, "q4_k", Some(&cache)).unwrap();
    assert_eq!(logits(&again), plain);
    let [note] = again.notes() else { panic!("{:?}", again.notes()) };
    assert!(note.contains("damaged") && note.contains("weights are computed again"), "{note}");
    assert_eq!(kept(&cache).len(), 1);
    assert!(load(&model, "q4_k", Some(&cache)).unwrap().notes().is_empty());
}

#[test]
fn a_cache_that_cannot_be_written_only_costs_time() {
    let (dir, model, _) = place();
    let no_folder = dir.path().join("file");
    std::fs::write(&no_folder, "").unwrap();
    let loaded = load(&model, "q4_k", Some(&no_folder)).unwrap();
    assert_eq!(logits(&loaded), logits(&load(&model, "q4_k", None).unwrap()));
    let [note] = loaded.notes() else { panic!("{:?}", loaded.notes()) };
    assert!(note.contains("file"), "{note}");
}

#[test]
fn values_that_a_format_cannot_hold_are_refused_by_name() {
    let (_dir, model, _) = place();
    let path = model.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    let at = all.tensor(name).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
    let mut bytes = bytes.clone();
    // Row 1, column 3.
    bytes[at + 4 * 259..][..4].copy_from_slice(&3e7f32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    assert!(load(&model, "bf16", None).is_ok());
    for weights in ["f16", "q8_0"] {
        let error = load(&model, weights, None).err().unwrap().to_string();
        assert!(error.contains(name) && error.contains("row 1") && error.contains(weights), "{error}");
    }
}

#[test]
fn names_are_those_of_formats() {
    assert_eq!("file".parse::<Weights>().unwrap(), Weights::File);
    for name in Weights::NAMES {
        assert_eq!(name.parse::<Weights>().unwrap().to_string(), name);
    }
    let error = "q3".parse::<Weights>().unwrap_err().to_string();
    assert!(error.contains("q3") && error.contains("q4_k"), "{error}");
}
