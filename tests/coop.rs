//! Frozen products with cooperative matrices, where the adapter has them (`scripts/coop-matrix` brings a software one).
#![cfg(feature = "gpu")]

use mixlora::check::{F16_BOUND, parity};
use mixlora::device::GpuOptions;
use mixlora::ops::{ALL, Case, Operand};
use mixlora::{Device, Format, Stream, Tensor, Weight};

mod common;

/// A device that was asked for cooperative matrices and has them.
fn coop() -> Option<Device> {
    common::gpu()?;
    let device = Device::gpu_with(&GpuOptions { coop: true, ..GpuOptions::from_env() }).unwrap();
    let Device::Gpu(gpu) = &device else { unreachable!() };
    // The first product that could use them tests them.
    linear(&device, [9, 16, 17], Format::F32).unwrap();
    if let Some(why) = gpu.coop_note() {
        assert!(!why.contains("failed"), "{why}");
        eprintln!("SKIPPED: {}: {why}", device.name());
        return None;
    }
    let info = gpu.info();
    println!("{}, {} {}", info.name, info.driver, info.driver_info);
    device.set_guard(true);
    Some(device)
}

fn linear(device: &Device, [m, k, n]: [usize; 3], format: Format) -> mixlora::Result<Tensor> {
    let values = |name: &str, len: usize| Stream::new(5).named(name).normal_vec(len, 1.0);
    let w = Weight::new(device, n, k, &values("w", n * k), format)?;
    Tensor::from_f32(device, &[m, k], &values("x", m * k))?.linear(&w, None)
}

/// `x W^T + bias` of values that f16 holds.
fn exact([m, k, n]: [usize; 3], format: Format) -> Case {
    let values = |name: &str, len: usize| -> Vec<f32> {
        let normal = Stream::new(6).named(name).normal_vec(len, 1.0);
        normal.into_iter().map(|v| (v * 256.0).round() / 256.0).collect()
    };
    let (w, bias) = (values("w", n * k), values("bias", n));
    let x = Operand::values(&[m, k], values("x", m * k));
    Case::new(format!("{m}x{k}x{n} {}", format.name()), vec![x], move |x| {
        let device = x[0].device();
        let w = Weight::new(device, n, k, &w, format)?;
        Ok(vec![x[0].linear(&w, Some(&Tensor::from_f32(device, &[n], &bias)?))?])
    })
    .sums(k.max(n))
}

fn check(device: &Device, case: &Case) -> f64 {
    let parity = parity(case, device).unwrap();
    assert!(parity.holds(), "{}: {parity}", case.label);
    parity.forward.max
}

/// Every format with shards, and with the low-rank update; backward products and few rows stay in f32.
#[test]
fn every_format_is_within_the_bound_of_f16_operands() {
    let Some(device) = coop() else { return };
    for name in ["fused_ba_matmul", "mixture_linears"] {
        let spec = ALL.iter().find(|s| s.name == name).unwrap();
        let (mut worst, mut rounded, mut all) = (0.0f64, 0, 0);
        for case in (spec.cases)() {
            let error = check(&device, &Case { tolerance: F16_BOUND, sum_length: 1, ..case });
            worst = worst.max(error);
            rounded += usize::from(error > 1e-5);
            all += 1;
        }
        println!(
            "{name}: {all} cases, {rounded} with rounded operands, worst error {worst:.1e}, bound {F16_BOUND:.0e}"
        );
    }
}

/// Where f16 holds the operands, the sums are those of f32: the usual bound.
#[test]
fn sums_are_f32() {
    let Some(device) = coop() else { return };
    for format in [Format::F32, Format::F16] {
        for shape in [[33, 66, 40], [70, 130, 167], [64, 576, 64]] {
            let case = exact(shape, format);
            println!("{:20} error {:.1e}", case.label, check(&device, &case));
        }
    }
}

/// The bits repeat, and the kernel that ran is the one meant.
#[test]
fn forward_products_use_them_and_repeat() {
    let Some(device) = coop() else { return };
    let Device::Gpu(gpu) = &device else { unreachable!() };
    let profiled = gpu.start_profile().unwrap();
    let first = linear(&device, [70, 130, 67], Format::F16).unwrap();
    let few = linear(&device, [4, 130, 67], Format::F16).unwrap();
    let times = gpu.take_profile().unwrap();
    if profiled {
        let entries: Vec<_> =
            times.iter().filter(|t| t.shader == "fused_ba_matmul").map(|t| t.entry).collect();
        assert_eq!(entries[0], "coop");
        assert_ne!(entries[1], "coop", "few rows stay in f32");
    }
    let again = linear(&device, [70, 130, 67], Format::F16).unwrap();
    assert_eq!(first.to_f32().unwrap(), again.to_f32().unwrap());
    assert!(few.to_f32().unwrap().iter().all(|v| v.is_finite()));
}

#[test]
fn nobody_gets_them_unasked() {
    common::gpu();
    if let Ok(Device::Gpu(gpu)) = Device::gpu_with(&GpuOptions { coop: false, ..GpuOptions::from_env() }) {
        assert!(gpu.coop_note().is_some_and(|why| why.contains("not asked")));
        assert!(!gpu.features().contains(mixlora::wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX));
    }
}
