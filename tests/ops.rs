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
