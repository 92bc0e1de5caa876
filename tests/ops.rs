//! Every case of every op: parity with the reference, derivatives, repeatability.

use mixlora::Device;
use mixlora::check::{bits, gradcheck, parity};

mod common;

fn check_parity(device: &Device) {
    let mut failed = Vec::new();
    for spec in mixlora::ops::ALL {
        for case in (spec.cases)() {
            match parity(&case, device) {
                Ok(p) if p.holds() => {}
                Ok(p) => failed.push(format!("{} {}: {p:?}", spec.name, case.label)),
                Err(e) => failed.push(format!("{} {}: {e}", spec.name, case.label)),
            }
        }
    }
    assert!(failed.is_empty(), "{} cases failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn cpu_matches_the_reference() {
    let cpu = Device::cpu();
    cpu.set_guard(true);
    check_parity(&cpu);
}

#[test]
fn gpu_matches_the_reference() {
    let Some(gpu) = common::gpu() else { return };
    gpu.set_guard(true);
    check_parity(&gpu);
}

#[test]
fn derivatives_match_central_differences() {
    let mut failed = Vec::new();
    for spec in mixlora::ops::ALL {
        for case in (spec.cases)().iter().filter(|c| c.gradcheck) {
            match gradcheck(case) {
                Ok(e) if e <= 1e-6 => {}
                Ok(e) => failed.push(format!("{} {}: {e:.2e}", spec.name, case.label)),
                Err(e) => failed.push(format!("{} {}: {e}", spec.name, case.label)),
            }
        }
    }
    assert!(failed.is_empty(), "{} cases failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn cpu_repeats_to_the_bit_on_any_number_of_threads() {
    let devices = [1, 2, 3, 2].map(|n| Device::cpu_with_threads(n).unwrap());
    for spec in mixlora::ops::ALL {
        for case in (spec.cases)() {
            let first = bits(&case, &devices[0]).unwrap();
            for d in &devices[1..] {
                assert!(first == bits(&case, d).unwrap(), "{} {}", spec.name, case.label);
            }
        }
    }
}

#[test]
fn gpu_repeats_to_the_bit() {
    let Some(gpu) = common::gpu() else { return };
    for spec in mixlora::ops::ALL {
        for case in (spec.cases)() {
            let first = bits(&case, &gpu).unwrap();
            assert!(first == bits(&case, &gpu).unwrap(), "{} {}", spec.name, case.label);
        }
    }
}
