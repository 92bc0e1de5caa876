//! Every case of every op: parity with the reference, derivatives, repeatability.
//!
//! `MIXLORA_OPS=reduce,matmul` runs the cases of these ops only; an unknown name is a failure.

use mixlora::check::{bits, gradcheck, parity};
use mixlora::ops::{ALL, Case, OpSpec};
use mixlora::{Device, Result};

mod common;

fn chosen() -> Vec<&'static OpSpec> {
    let Ok(list) = std::env::var("MIXLORA_OPS") else { return ALL.to_vec() };
    let find =
        |name| ALL.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no op is named '{name}'"));
    list.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|name| *find(name)).collect()
}

/// Runs `check` on every case of the chosen ops; it says what is wrong, in one line.
fn every_case(check: impl Fn(&Case) -> Result<Option<String>>) {
    let mut failed = Vec::new();
    for spec in chosen() {
        for case in (spec.cases)() {
            if let Some(what) = check(&case).unwrap_or_else(|e| Some(e.to_string())) {
                failed.push(format!("{} {}: {what}", spec.name, case.label));
            }
        }
    }
    assert!(failed.is_empty(), "{} cases failed:\n{}", failed.len(), failed.join("\n"));
}

fn check_parity(device: &Device) {
    device.set_guard(true);
    every_case(|case| {
        let p = parity(case, device)?;
        Ok((!p.holds()).then(|| p.to_string()))
    });
}

#[test]
fn cpu_matches_the_reference() {
    check_parity(&Device::cpu());
}

#[test]
fn gpu_matches_the_reference() {
    let Some(gpu) = common::gpu() else { return };
    check_parity(&gpu);
    #[cfg(feature = "gpu")]
    check_kernels(&gpu);
}

/// Entries with several kernels to choose from, and the constants that tell them apart. The cases force those that the
/// test machine's adapter does not choose by itself.
#[cfg(feature = "gpu")]
const CHOICES: &[(&str, &[&str], &[&str])] = &[
    ("attention", &["forward", "backward_q", "backward_kv"], &["NJ1", "NJ2", "NJ4"]),
    ("matmul", &["direct"], DIRECT),
    ("matmul", &["tile"], TILE),
    ("matmul", &["vector"], VECTOR),
    ("fused_ba_matmul", &["direct"], DIRECT),
    ("fused_ba_matmul", &["tile"], TILE),
    ("fused_ba_matmul", &["vector"], VECTOR),
    ("rms_norm", &["forward", "backward_x"], &["WG64", "WG256"]),
    ("layer_norm", &["forward", "backward_x"], &["WG64", "WG256"]),
    ("softmax", &["forward", "backward"], &["WG64", "WG256"]),
    ("top_k", &["pick", "rank"], &["WG64", "WG256"]),
    ("topk_routing", &["forward", "backward", "table"], &["WG64 STRIDE1", "WG64 STRIDE64"]),
];
#[cfg(feature = "gpu")]
const DIRECT: &[&str] = &["R8 V1 X8 Y8", "R8 V1 X4 Y16", "R4 V1 X32 Y1", "R1 V1 X32 Y1"];
#[cfg(feature = "gpu")]
const TILE: &[&str] = &["R8 V2 X8 Y8", "R4 V2 X8 Y8", "R4 V1 X4 Y16"];
#[cfg(feature = "gpu")]
const VECTOR: &[&str] = &["R8 V1 X16 Y4", "R4 V1 X16 Y4", "R1 V1 X16 Y4"];

/// Every entry of every shader was launched: in one size, or in all sizes of the table. A kernel that is added to the
/// choice without a case that runs it, or without a line in the table, fails.
#[cfg(feature = "gpu")]
fn check_kernels(device: &Device) {
    use mixlora::device::{Launched, parts::PRODUCT};
    use std::collections::BTreeSet;
    let Device::Gpu(gpu) = device else { unreachable!() };
    let size = |consts: &[(&str, u32)]| -> String {
        let chosen = consts.iter().filter(|c| ["WG", "STRIDE", "NJ", "R", "V", "X", "Y"].contains(&c.0));
        chosen.map(|(name, value)| format!("{name}{value}")).collect::<Vec<_>>().join(" ")
    };
    let launched = gpu.launched();
    let mut failed = Vec::new();
    for shader in chosen().iter().flat_map(|spec| spec.shaders) {
        // Cooperative matrices are few adapters' and have tests of their own.
        for entry in shader.entries.iter().filter(|e| e.name != "coop") {
            let of = |k: &&Launched| (k.shader, k.entry) == (shader.name, entry.name);
            let seen: BTreeSet<String> = launched.iter().filter(of).map(|k| size(&k.consts)).collect();
            // Products take their sizes from a list of tilings.
            let declared = entry.variants.iter().filter(|v| !v.parts.contains(&PRODUCT));
            let declared: BTreeSet<String> = declared.map(|v| size(v.consts)).collect();
            let listed = CHOICES.iter().find(|c| c.0 == shader.name && c.1.contains(&entry.name));
            let listed = listed.map(|c| c.2.iter().map(|s| s.to_string()).collect::<BTreeSet<_>>());
            let fits = match &listed {
                Some(sizes) => seen == *sizes && declared.is_subset(sizes),
                None => seen.len() == 1 && seen == declared,
            };
            if !fits {
                let name = format!("{} {}", shader.name, entry.name);
                failed.push(format!("{name}: launched {seen:?}, declared {declared:?}, listed {listed:?}"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn derivatives_match_central_differences() {
    const BOUND: f64 = 1e-6;
    every_case(|case| {
        let e = if case.gradcheck { gradcheck(case)? } else { 0.0 };
        Ok((e > BOUND).then(|| format!("derivative off by {e:.1e}, bound {BOUND:.0e}")))
    });
}

#[test]
fn cpu_repeats_to_the_bit_on_any_number_of_threads() {
    let devices = [1, 2, 3, 2].map(|n| Device::cpu_with_threads(n).unwrap());
    every_case(|case| {
        let first = bits(case, &devices[0])?;
        for d in &devices[1..] {
            if let Some(what) = difference(&first, &bits(case, d)?) {
                return Ok(Some(what));
            }
        }
        Ok(None)
    });
}

#[test]
fn gpu_repeats_to_the_bit() {
    let Some(gpu) = common::gpu() else { return };
    every_case(|case| Ok(difference(&bits(case, &gpu)?, &bits(case, &gpu)?)));
}

fn difference(a: &[u32], b: &[u32]) -> Option<String> {
    let n = a.iter().zip(b).filter(|(a, b)| a != b).count();
    (a != b).then(|| format!("{n} of {} values differ between two runs", a.len()))
}
