//! `mixlora tune`, as a user types it.
#![cfg(all(feature = "cli", feature = "gpu"))]

use crate::common::cli::{mixlora, output};

fn tune(cache: &std::path::Path, args: &[&str], code: i32) -> (String, String) {
    output(mixlora(&[&["tune"][..], args].concat()).env("MIXLORA_CACHE", cache), code)
}

/// On a software adapter nothing is measured unless asked for, and nothing is kept in any case.
#[test]
fn a_software_adapter_keeps_the_built_in_table() {
    let Some(device) = crate::common::gpu() else { return };
    let mixlora::Device::Gpu(gpu) = &device else { unreachable!() };
    if gpu.class() != mixlora::device::AdapterClass::Software {
        return eprintln!("SKIPPED: {} is hardware", device.name());
    }
    let dir = tempfile::tempdir().unwrap();
    let (out, _) = tune(dir.path(), &[], 0);
    assert!(out.contains("software adapter") && out.lines().count() == 1, "{out}");
    let (out, err) = tune(dir.path(), &["--dry-run", "--shapes", "12x20x32,1x8x32"], 0);
    let kernels = "direct,direct n16,direct m1,tile,tile n16,vector m8,vector m1,stream m8,stream m1,ahead";
    for kernel in kernels.split(',') {
        let row = format!("12x20x32  {kernel} ");
        assert!(out.contains(&row), "{kernel}: {out}");
    }
    assert_eq!(out.lines().count(), 2 + 2 * 14, "{out}");
    assert!(out.contains("built in") && !out.contains("wrong"), "{out}");
    assert!(err.contains("nothing is kept"), "{err}");
    assert!(!dir.path().join("tuned").exists());
}

#[test]
fn bad_arguments_are_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let (_, err) = tune(dir.path(), &["--device", "cpu"], 2);
    assert!(err.contains("--device"), "{err}");
    let (_, err) = tune(dir.path(), &["--shapes", "3x4"], 2);
    assert!(err.contains("--shapes") && err.contains("3x4"), "{err}");
}
