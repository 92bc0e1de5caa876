//! A plain LoRA on tiny models of every family, from both kinds of files: merged into a Hugging Face directory, and as a
//! GGUF adapter. `MIXLORA_GOLDEN_MODELS` names a folder of more models; docs in tests/golden/README.md.

use crate::common::families::models;
use mixlora::adapter::{ALL_LINEAR, Adapter};
use mixlora::io::gguf::Value;
use mixlora::io::{Checkpoint, GgufFile};
use mixlora::mixture::{Units, find};
use mixlora::model::{Model, RopeScaling, Step};
use mixlora::nn::Pass;
use mixlora::{Device, Format, Stream, Tensor, no_grad};
use std::path::Path;
use std::sync::Arc;

/// Of the largest logit.
const BOUND: f32 = 1e-4;
const R: usize = 2;

fn adapted(path: &Path) -> (Arc<Model>, Adapter) {
    let model = Model::open(path, &Device::cpu()).unwrap();
    let method = find("lora").unwrap().defaults().with("r", R).unwrap();
    let adapter = Adapter::attach(&model, &method, &[ALL_LINEAR.into()], Stream::new(1)).unwrap();
    for param in adapter.trainable() {
        let value = param.value();
        let values = Stream::new(3).named(&param.name()).normal_vec(value.len(), 0.1);
        param.set(Tensor::from_f32(value.device(), value.dims(), &values).unwrap()).unwrap();
    }
    (model, adapter)
}

/// Logits of a sequence that is longer than every window.
fn logits(model: &Model, adapter: Option<&Adapter>) -> Vec<f32> {
    let ids: Vec<u32> = (0..40).map(|i| 3 + 41 * i % 200).collect();
    let ids = Tensor::from_u32(model.device(), &[1, 40], &ids).unwrap();
    let pass = Pass::new(Units::instances(model.device(), 1, 40).unwrap());
    let pass = pass.with_adapters(adapter.map(|adapter| adapter.sites().clone()));
    let run = || model.logits(&model.forward(&ids, &pass, Step::default())?)?.to_f32();
    no_grad(run).unwrap()
}

/// The largest difference relative to the largest value.
fn worst(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    got.iter().zip(want).fold(0f32, |worst, (got, want)| worst.max((got - want).abs())) / largest
}

#[test]
fn merged_models_of_every_family_compute_what_their_adapters_do() {
    for folder in models() {
        for path in [folder.clone(), folder.join("model-f16.gguf")].iter().filter(|path| path.exists()) {
            let (model, adapter) = adapted(path);
            let want = logits(&model, Some(&adapter));
            assert!(
                worst(&logits(&model, None), &want) > 0.01,
                "{}: the adapter changes something",
                path.display()
            );
            let out = tempfile::tempdir().unwrap();
            if let Err(error) = adapter.merge(&model, out.path(), Format::F32) {
                // A table of factors in a GGUF file whose numbers config.json would need cannot be found again.
                let table = matches!(model.config().ropes[0].scaling, RopeScaling::Factors(_));
                let what = error.to_string();
                assert!(
                    table && what.contains("give the Hugging Face directory"),
                    "{}: {what}",
                    path.display()
                );
                continue;
            }
            let merged = Model::open(out.path(), &Device::cpu()).unwrap();
            let error = worst(&logits(&merged, None), &want);
            assert!(error < BOUND, "{}: {error:.1e}", path.display());
            println!("{}: {error:.1e}", path.strip_prefix(folder.parent().unwrap()).unwrap().display());
        }
    }
}

/// The same as GGUF files, whose metadata say what those of llama.cpp's converter say.
#[test]
fn merged_gguf_files_of_every_family_compute_what_their_adapters_do() {
    let mut written = 0;
    for folder in models() {
        let twin = folder.join("model-f16.gguf");
        for path in [&folder, &twin].into_iter().filter(|path| path.exists()) {
            let (model, adapter) = adapted(path);
            let place = tempfile::tempdir().unwrap();
            let out = place.path().join("merged.gguf");
            if let Err(error) = adapter.merge_gguf(&model, &out, Format::F32, Vec::new()) {
                let what = error.to_string();
                assert!(
                    what.contains("Hugging Face directory") && *path == folder && !out.exists(),
                    "{what}"
                );
                println!("{}: {what}", path.display());
                continue;
            }
            let merged = Model::open(&out, &Device::cpu()).unwrap();
            let error = worst(&logits(&merged, None), &logits(&model, Some(&adapter)));
            assert!(error < BOUND, "{}: {error:.1e}", path.display());
            written += 1;
            if *path == folder && twin.exists() {
                same_words(&GgufFile::open(&out).unwrap(), &GgufFile::open(&twin).unwrap());
            }
        }
    }
    assert!(written >= 6, "{written} files");
}

/// Compares what two files say of what is computed.
fn same_words(ours: &GgufFile, theirs: &GgufFile) {
    let architecture = theirs.str("general.architecture").unwrap();
    let close = |a: &Value, b: &Value| match (a, b) {
        (Value::F32(a), Value::F32(b)) => (a - b).abs() <= 1e-6 * b.abs(),
        _ => a == b,
    };
    for (key, value) in ours.metadata().iter().filter(|(key, _)| key.starts_with(architecture)) {
        // Sizes that llama.cpp takes from other entries may be left out.
        if let Some(other) = theirs.get(key) {
            assert!(close(value, other), "{}: {key} is {value:?}, not {other:?}", theirs.path().display());
        }
    }
    let names = |file: &GgufFile| file.tensors().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(ours), names(theirs));
}

#[test]
fn merged_gguf_files_are_quantised_as_llama_cpp_mixes_formats() {
    let folder = models().into_iter().find(|path| path.ends_with("qwen2_moe-a")).unwrap();
    let (model, adapter) = adapted(&folder);
    let place = tempfile::tempdir().unwrap();
    let merged = |format: Format| {
        let out = place.path().join(format.name()).with_extension("gguf");
        adapter.merge_gguf(&model, &out, format, Vec::new()).unwrap();
        GgufFile::open(&out).unwrap()
    };
    let plain = merged(Format::F32);
    // A step of q5_0, which rows without blocks of 256 get, is a sixteenth of the largest value; there is none for its opposite.
    for (format, near) in [(Format::Bf16, 0.004), (Format::Q8_0, 0.005), (Format::Q4_K, 0.0626)] {
        let file = merged(format);
        let of = |name: &str| file.raw(name).unwrap().format;
        assert_eq!(of("blk.0.attn_q.weight"), format.for_columns(model.config().hidden_size));
        assert_eq!((of("blk.0.ffn_gate_inp.weight"), of("output_norm.weight")), (Format::F32, Format::F32));
        let head = if format == Format::Q4_K { Format::Q8_0 } else { format };
        assert_eq!(of("output.weight"), head);
        for name in ["blk.0.attn_q.weight", "blk.1.ffn_down_exps.weight", "token_embd.weight"] {
            let error = worst(&file.values_f32(name).unwrap(), &plain.values_f32(name).unwrap());
            assert!(error < near, "{name} in {format:?}: {error}");
        }
    }
}

/// The rows of the GGUF twin are found by their values among those of the Hugging Face file, and the update of each row
/// in the exported file is that of the same row in the merged model.
#[test]
fn gguf_adapters_of_every_family_fit_the_gguf_file() {
    let mut seen = 0;
    for folder in models() {
        let (model, adapter) = adapted(&folder);
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("adapter.gguf");
        if model.config().gguf_architecture().is_none() {
            let error = adapter.export_gguf(&model, &path).unwrap_err().to_string();
            assert!(error.contains("PEFT's format"), "{error}");
            continue;
        }
        adapter.export_gguf(&model, &path).unwrap();
        let twin = folder.join("model-f16.gguf");
        if !twin.exists() {
            continue;
        }
        let exported = GgufFile::open(&path).unwrap();
        let twin = GgufFile::open(twin).unwrap();
        assert_eq!(exported.str("general.architecture").unwrap(), twin.str("general.architecture").unwrap());
        adapter.merge(&model, out.path(), Format::F32).unwrap();
        let plain = Checkpoint::open(&folder).unwrap();
        let merged = Checkpoint::open(out.path()).unwrap();
        let scale = exported.f32("adapter.lora.alpha").unwrap() / R as f32;
        for (path, _) in model.linears() {
            let theirs = model.config().gguf_name(&format!("{path}.weight"));
            let base = twin.values_f32(&theirs).unwrap();
            let d_in = twin.tensor(&theirs).unwrap().cols();
            let [a, b] =
                ["lora_a", "lora_b"].map(|part| exported.values_f32(&format!("{theirs}.{part}")).unwrap());
            let ours = plain.values_f32(&format!("{path}.weight")).unwrap();
            let after = merged.values_f32(&format!("{path}.weight")).unwrap();
            for (row, base) in base.chunks(d_in).enumerate() {
                let same = ours.chunks(d_in).position(|ours| ours == base);
                let same = same.unwrap_or_else(|| panic!("{theirs}: row {row} is not in {path}"));
                let updated = |i: usize| {
                    base[i] + scale * (0..R).map(|k| b[row * R + k] * a[k * d_in + i]).sum::<f32>()
                };
                let got: Vec<f32> = (0..d_in).map(updated).collect();
                let error = worst(&got, &after[same * d_in..][..d_in]);
                assert!(error < BOUND, "{theirs} row {row}: {error:.1e}");
            }
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} linears");
}
