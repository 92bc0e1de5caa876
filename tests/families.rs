//! Model families against transformers: logits of tiny random models that `fixtures/make_families.py` wrote, from
//! the Hugging Face folder and from the GGUF file of the same weights.

mod common;

use common::families::{fixture as any_fixture, logits, replaced, stored, worst};
use mixlora::Device;
use mixlora::model::{LoadOptions, Model, ModelFiles, RopeScaling};
use std::path::PathBuf;

const FAMILIES: [&str; 4] = ["llama2", "llama3", "mistral", "qwen2"];
/// Measured: at most 6e-6 on the CPU and on lavapipe, for logits of up to 5.
const BOUND: f32 = 1e-4;

fn fixture(name: &str) -> PathBuf {
    any_fixture("families").join(name)
}

fn check(family: &str, device: &Device) {
    let places = [fixture(family), fixture(&format!("{family}.gguf"))];
    for path in &places {
        let model = Model::open(path, device, false).unwrap();
        let sequences = stored(family);
        assert!(!sequences.is_empty());
        for (ids, want) in sequences {
            let e = worst(&logits(&model, &ids).unwrap(), &want);
            assert!(e < BOUND, "{}, {} tokens on {}: {e}", path.display(), ids.len(), device.name());
        }
    }
}

#[test]
fn both_kinds_of_files_give_the_logits_of_transformers() {
    FAMILIES.iter().for_each(|f| check(f, &Device::cpu()));
}

#[test]
fn the_gpu_gives_them_too() {
    if let Some(gpu) = common::gpu() {
        check("llama3", &gpu);
    }
}

#[test]
fn the_stored_logits_depend_on_what_is_easily_forgotten() {
    // Scaled frequencies: the GGUF file without its factors.
    let cpu = Device::cpu();
    let bytes = std::fs::read(fixture("llama3.gguf")).unwrap();
    let renamed = replaced(&bytes, b"rope_freqs.weight", b"rope_freqs.wEIGHT");
    let file = mixlora::io::GgufFile::from_bytes("plain.gguf", renamed).unwrap();
    let model = Model::load(&ModelFiles::from_gguf(file).unwrap(), &cpu, LoadOptions::default()).unwrap();
    let (ids, want) = stored("llama3").swap_remove(0);
    assert!(worst(&logits(&model, &ids).unwrap(), &want) > 0.1);
    assert_eq!(model.notes(), ["1 tensors of the model are not used: rope_freqs.wEIGHT"]);
    // Row order: the same file as a qwen2, whose rows are not interleaved.
    let bytes = std::fs::read(fixture("llama2.gguf")).unwrap();
    let file = mixlora::io::GgufFile::from_bytes("qwen2.gguf", replaced(&bytes, b"llama", b"qwen2")).unwrap();
    let model = Model::load(&ModelFiles::from_gguf(file).unwrap(), &cpu, LoadOptions::default()).unwrap();
    let (ids, want) = stored("llama2").swap_remove(0);
    assert!(worst(&logits(&model, &ids).unwrap(), &want) > 0.1);
}

#[test]
fn both_kinds_of_files_have_the_same_configuration() {
    for family in FAMILIES {
        let hf = ModelFiles::open(&fixture(family)).unwrap();
        let gguf = ModelFiles::open(&fixture(&format!("{family}.gguf"))).unwrap();
        let (a, b) = (hf.config(), gguf.config());
        assert_eq!(a.parameters(), b.parameters(), "{family}");
        for (x, y) in a.rope_frequencies().iter().zip(b.rope_frequencies()) {
            assert!((x / y - 1.0).abs() < 1e-6, "{family}: {x} {y}");
        }
        let mut b = b.clone();
        (b.model_type, b.rope_scaling) = (a.model_type.clone(), a.rope_scaling.clone());
        assert_eq!(*a, b, "{family}");
        for e in hf.expected() {
            assert_eq!(hf.values(&e.name).unwrap(), gguf.values(&e.name).unwrap(), "{family}: {}", e.name);
        }
    }
    assert!(matches!(
        ModelFiles::open(&fixture("llama3")).unwrap().config().rope_scaling,
        Some(RopeScaling::Llama3(_))
    ));
}

#[test]
fn sequences_beyond_a_sliding_window_are_refused() {
    let model = Model::open(&fixture("mistral"), &Device::cpu(), false).unwrap();
    assert_eq!(model.config().max_positions(), 32);
    assert!(model.notes()[0].contains("sliding window"), "{:?}", model.notes());
    let e = logits(&model, &[1; 33]).unwrap_err().to_string();
    assert!(e.contains("33 positions") && e.contains("sliding window has 32"), "{e}");
}
