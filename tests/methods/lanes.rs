//! The CPU and the GPU against the reference, and runs against each other.

use crate::rig::{Rig, changed, forced_on, gpu, groups, methods};
use mixlora::mixture::Pool;
use mixlora::nn::Choices;
use mixlora::{Device, Result};
use serde_json::json;

const BOUND: f64 = 1e-5;

/// The worst error of a device, with the reference's choices forced; choices alone must agree as well.
fn worst_error(device: &Device) -> Result<f64> {
    let mut worst = 0f64;
    for (spec, config) in methods() {
        let config = changed(&config, json!({ "lora_dropout": 0.25 }));
        for outs in groups(spec) {
            let reference = Rig::new(&config, outs, &Device::reference());
            let record = Choices::record();
            let pass = reference.pass(Pool::PromptMask).with_choices(record.clone());
            let want = reference.step(&reference.x(), &pass)?;
            let rig = Rig::new(&config, outs, device);
            let forced = rig.pass(Pool::PromptMask).with_choices(forced_on(&record, device));
            let error = rig.step(&rig.x(), &forced)?.error(&want);
            assert!(error <= BOUND, "{} {outs:?} on {}: {error:.1e}", spec.name, device.name());
            let own = rig.pass(Pool::PromptMask).with_choices(Choices::record());
            rig.forward(&rig.x(), &own)?;
            let idx = |c: &Choices| crate::rig::chosen(c).map(|t| crate::rig::entries(&t));
            assert_eq!(idx(&own.choices), idx(&record), "{} {outs:?}", spec.name);
            worst = worst.max(error);
        }
    }
    Ok(worst)
}

#[test]
fn the_cpu_matches_the_reference() {
    let cpu = Device::cpu();
    cpu.set_guard(true);
    println!("worst {:.1e}", worst_error(&cpu).unwrap());
    assert!(cpu.check_guards().unwrap());
}

#[test]
fn the_gpu_matches_the_reference() {
    let Some(gpu) = gpu() else { return };
    println!("worst {:.1e}", worst_error(&gpu).unwrap());
    assert!(gpu.check_guards().unwrap());
}

/// The bits of one step, and of the step after the balancing biases moved.
fn bits(device: &Device) -> Vec<(&'static str, Vec<u32>)> {
    let mut all = Vec::new();
    for (spec, config) in methods() {
        let config = changed(&config, json!({ "lora_dropout": 0.25 }));
        for outs in groups(spec) {
            let rig = Rig::new(&config, outs, device);
            let mut bits = rig.step(&rig.x(), &rig.pass(Pool::Real)).unwrap().bits();
            rig.after_step();
            bits.extend(rig.step(&rig.x(), &rig.pass(Pool::Real)).unwrap().bits());
            all.push((spec.name, bits));
        }
    }
    all
}

#[test]
fn the_cpu_repeats_to_the_bit_on_any_number_of_threads() {
    let first = bits(&Device::cpu_with_threads(1).unwrap());
    for threads in [2, 3, 1] {
        assert!(first == bits(&Device::cpu_with_threads(threads).unwrap()), "{threads} threads");
    }
}

#[test]
fn the_gpu_repeats_to_the_bit() {
    let Some(gpu) = gpu() else { return };
    let first = bits(&gpu);
    assert!(first == bits(&gpu));
}
