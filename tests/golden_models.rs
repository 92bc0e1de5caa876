//! Tiny models of every family against values of transformers: logits, states, losses, gradients, greedy text, GGUF
//! twins. `MIXLORA_GOLDEN_MODELS` names a folder of more of them; docs in tests/golden/README.md.

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
