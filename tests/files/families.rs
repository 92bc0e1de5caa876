//! Model families against transformers: logits of tiny random models that `fixtures/make_families.py` wrote, from
//! the Hugging Face folder and from the GGUF file of the same weights.

use crate::common::families::{fixture as any_fixture, logits, replaced, stored, worst};
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
        let model = Model::open(path, device).unwrap();
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
    if let Some(gpu) = crate::common::gpu() {
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
    let model = Model::load(&ModelFiles::from_gguf(file).unwrap(), &cpu, &LoadOptions::default()).unwrap();
    let (ids, want) = stored("llama3").swap_remove(0);
    assert!(worst(&logits(&model, &ids).unwrap(), &want) > 0.1);
    assert_eq!(model.notes(), ["1 tensors of the model are not used: rope_freqs.wEIGHT"]);
    // A qwen2 has biases whatever its file says, so that the same file as one lacks them.
    let bytes = std::fs::read(fixture("llama2.gguf")).unwrap();
    let file = mixlora::io::GgufFile::from_bytes("qwen2.gguf", replaced(&bytes, b"llama", b"qwen2")).unwrap();
    let files = ModelFiles::from_gguf(file).unwrap();
    let e = Model::load(&files, &cpu, &LoadOptions::default()).err().unwrap().to_string();
    assert!(e.contains("6 tensors are missing: 'blk.0.attn_k.bias'"), "{e}");
    // Row order: that of a qwen2 is not interleaved.
    let name = "model.layers.0.self_attn.q_proj.weight";
    let plain = ModelFiles::open(&fixture("llama2.gguf")).unwrap();
    assert_ne!(files.values(name).unwrap(), plain.values(name).unwrap());
}

#[test]
fn both_kinds_of_files_have_the_same_configuration() {
    for family in FAMILIES {
        let hf = ModelFiles::open(&fixture(family)).unwrap();
        let gguf = ModelFiles::open(&fixture(&format!("{family}.gguf"))).unwrap();
        let (a, b) = (hf.config(), gguf.config());
        assert_eq!(a.parameters(), b.parameters(), "{family}");
        for (x, y) in a.ropes[0]
            .frequencies(1)
            .unwrap()
            .per_pair
            .iter()
            .zip(b.ropes[0].frequencies(1).unwrap().per_pair)
        {
            assert!((x / y - 1.0).abs() < 1e-6, "{family}: {x} {y}");
        }
        assert_eq!((&a.layers, a.norm, a.norms), (&b.layers, b.norm, b.norms), "{family}");
        assert_eq!(a.sites(), b.sites(), "{family}");
        for e in hf.expected() {
            assert_eq!(hf.values(&e.name).unwrap(), gguf.values(&e.name).unwrap(), "{family}: {}", e.name);
        }
    }
    assert!(matches!(
        ModelFiles::open(&fixture("llama3")).unwrap().config().ropes[0].scaling,
        RopeScaling::Llama3(_)
    ));
}

/// A query sees the window before it: logits of a position do not depend on tokens that no layer reaches.
#[test]
fn a_window_ends_what_a_position_sees() {
    let model = Model::open(&fixture("mistral"), &Device::cpu()).unwrap();
    let layers = &model.config().layers;
    let window = layers[0].window.unwrap();
    let n = layers.len() * (window - 1) + 2;
    let last = |first: u32| {
        let ids: Vec<u32> = std::iter::once(first).chain((1..n as u32).map(|i| 3 + i % 20)).collect();
        let all = logits(&model, &ids).unwrap();
        all[all.len() - model.config().vocab_size * 2..].to_vec()
    };
    let (a, b) = (last(1), last(2));
    let v = model.config().vocab_size;
    assert_eq!(a[v..], b[v..], "behind the reach of all windows");
    assert_ne!(a[..v], b[..v], "the position before is within it");
}
