//! What a GPU keeps in a cache folder between runs.
#![cfg(feature = "gpu")]

use mixlora::device::GpuOptions;
use mixlora::{Device, Tensor};
use std::path::{Path, PathBuf};

mod common;

/// One run: a device with this folder, a product, and an activation if told so.
fn run(folder: &Path, more: bool) -> Vec<f32> {
    let options = GpuOptions { cache: Some(folder.to_path_buf()), ..GpuOptions::from_env() };
    let device = Device::gpu_with(&options).unwrap();
    let a = Tensor::full(&device, &[8, 8], 0.5).unwrap();
    let y = a.matmul(&a).unwrap();
    let y = if more { y.scale(2.0).unwrap() } else { y };
    y.to_f32().unwrap()
}

fn kept(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.join("kernels")).into_iter().flatten();
    entries.map(|e| e.unwrap().path()).collect()
}

#[test]
fn kernels_are_kept_for_the_next_run() {
    if common::gpu().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(dir.path(), false), [2.0; 64]);
    let files = kept(dir.path());
    let [file] = &files[..] else { panic!("one file for the adapter: {files:?}") };
    let first = std::fs::read(file).unwrap();
    // Nothing new is launched: the file stays as it is.
    let old = std::fs::metadata(file).unwrap().modified().unwrap();
    assert_eq!(run(dir.path(), false), [2.0; 64]);
    assert_eq!(std::fs::metadata(file).unwrap().modified().unwrap(), old);
    assert_eq!(run(dir.path(), true), [4.0; 64]);
    assert!(std::fs::read(file).unwrap().len() > first.len(), "one kernel more");
    // What a run does not launch stays in the list.
    let all = std::fs::read(file).unwrap();
    assert_eq!(run(dir.path(), false), [2.0; 64]);
    assert_eq!(std::fs::read(file).unwrap(), all);
    assert_eq!(kept(dir.path()).len(), 1, "no temporary file is left");
}

#[test]
fn damaged_files_are_replaced() {
    if common::gpu().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), false);
    let file = kept(dir.path()).remove(0);
    let good = std::fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for bad in [&flipped[..], &good[..good.len() / 2], b"", b"something else"] {
        std::fs::write(&file, bad).unwrap();
        assert_eq!(run(dir.path(), false), [2.0; 64]);
        assert_eq!(std::fs::read(&file).unwrap().len(), good.len());
    }
}

#[test]
fn without_a_folder_nothing_is_kept() {
    if common::gpu().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    // A folder that cannot be made is none.
    assert_eq!(run(&file, false), [2.0; 64]);
    assert_eq!(std::fs::read(&file).unwrap(), b"");
}
