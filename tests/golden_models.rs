//! Tiny models of every family against values of transformers: logits, states, losses, gradients, greedy text, GGUF
//! twins. `MIXLORA_GOLDEN_MODELS` names a folder of more of them; docs in tests/golden/README.md.

mod common;

use common::edit::{Edit, file};
use mixlora::Device;
use mixlora::check::golden::{find_files, replay};
use std::path::PathBuf;

fn replay_all(device: &Device) {
    let stored = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let more = std::env::var_os("MIXLORA_GOLDEN_MODELS").map(PathBuf::from);
    let files = find_files(&[more.unwrap_or(stored)]).unwrap();
    let mut failed = Vec::new();
    for path in files.iter().filter(|p| p.ends_with("reference.safetensors")) {
        let name = path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        match replay(path, device) {
            Err(e) => failed.push(format!("{name}: {e}")),
            Ok(replay) => {
                let worst = replay.worst().unwrap();
                println!(
                    "{name} on {}: {} checks, worst {} {:.1e}",
                    device.name(),
                    replay.errors.len(),
                    worst.name,
                    worst.error
                );
                let bad = replay.errors.iter().filter(|m| !m.holds());
                failed.extend(bad.map(|m| format!("{name}: {} {:.2e}", m.name, m.error)));
            }
        }
    }
    assert!(failed.is_empty(), "{}:\n{}", device.name(), failed.join("\n"));
}

#[test]
fn the_reference_computes_every_family() {
    replay_all(&Device::reference());
}

#[test]
fn the_cpu_computes_every_family() {
    replay_all(&Device::cpu());
}

/// What routers chose and the gradients of experts are looked at: other stored values are told apart.
#[test]
fn other_experts_and_gradients_are_noticed() {
    let stored = file("models/qwen2_moe-a/reference.safetensors");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(stored.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let failing = |edit: Edit, device: &Device| {
        let path = edit.write(folder.path(), "reference");
        let replay = replay(&path, device).unwrap();
        let bad = replay.errors.iter().filter(|measured| !measured.holds());
        (bad.map(|measured| measured.name.clone()).collect::<Vec<_>>(), replay.choices)
    };
    let plain = Edit::open(&stored);
    // The two experts of one token in the other order.
    let swapped = plain.clone().swap("experts", 6, 7);
    assert_eq!(failing(swapped, &Device::cpu()), (vec!["experts".into(), "f16 experts".into()], false));
    for part in ["gate", "experts.0.down_proj", "shared_expert_gate"] {
        let name = format!("grad.model.layers.1.mlp.{part}.weight");
        let at = plain.largest(&name);
        let other = plain.clone().value(&name, at, |value| value * 1.01);
        assert_eq!(failing(other.clone(), &Device::reference()), (vec![name.clone()], true));
        // Only the reference can follow the loss along a weight that no adapter can join.
        let on_cpu = if part == "shared_expert_gate" { vec![] } else { vec![name] };
        assert_eq!(failing(other, &Device::cpu()), (on_cpu, true));
    }
}
