//! Every case of every op: parity with the reference, derivatives, repeatability.
//!
//! `MIXLORA_OPS=reduce,matmul` runs the cases of these ops only; an unknown name is a failure. Of a share of the cases
//! (tests/common/share.rs) a GPU runs as many more as it takes to launch every entry of every shader.

use mixlora::check::{bits, gradcheck, parity};
use mixlora::ops::{ALL, Case, OpSpec};
use mixlora::{Device, Result};
#[cfg(feature = "gpu")]
use {
    common::share::{Share, longest_first},
    mixlora::device::Launched,
    std::sync::Mutex,
    std::sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

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

#[test]
fn cpu_matches_the_reference() {
    let cpu = Device::cpu();
    cpu.set_guard(true);
    every_case(|case| {
        let p = parity(case, &cpu)?;
        Ok((!p.holds()).then(|| p.to_string()))
    });
}

/// Parity, and the same bits in two runs. Each thread has a device of its own, and each op is one thread's: a driver
/// compiles the kernels of one device one after the other.
#[cfg(feature = "gpu")]
#[test]
fn gpu_matches_the_reference_and_repeats() {
    let Some(first) = common::gpu() else { return };
    let share = Share::one_in(6, &first);
    let failed = Mutex::new(Vec::new());
    let ops = longest_first(chosen());
    let next = AtomicUsize::new(0);
    let work = |device: &Device| {
        device.set_guard(true);
        while let Some(spec) = ops.get(next.fetch_add(1, Relaxed)) {
            let wrong = check_op(spec, device, &share);
            failed.lock().unwrap().extend(wrong);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
    let devices: Vec<Device> = (0..threads).map(|_| first.again().unwrap()).collect();
    std::thread::scope(|scope| devices.iter().for_each(|device| drop(scope.spawn(|| work(device)))));
    let launched = launched(&devices);
    for (shader, entry) in ops.iter().flat_map(|spec| entries(spec)) {
        if !launched.iter().any(|k| (k.shader, k.entry) == (shader, entry)) {
            failed.lock().unwrap().push(format!("{shader}: no case launches {entry}"));
        }
    }
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    if share == Share::All {
        check_kernels(&launched);
    }
}

/// Runs an op's share of cases, and then as many more as it takes to launch each of its entries; what is wrong.
#[cfg(feature = "gpu")]
fn check_op(spec: &OpSpec, device: &Device, share: &Share) -> Vec<String> {
    let check = |case: &Case| -> Result<Option<String>> {
        let p = parity(case, device)?;
        if !p.holds() {
            return Ok(Some(p.to_string()));
        }
        Ok(difference(&bits(case, device)?, &bits(case, device)?))
    };
    let unlaunched = || {
        let launched = launched(std::slice::from_ref(device));
        entries(spec).iter().any(|e| !launched.iter().any(|k| (k.shader, k.entry) == *e))
    };
    let numbered = (spec.cases)().into_iter().enumerate();
    let (today, others): (Vec<_>, Vec<_>) = numbered.partition(|(i, _)| share.holds(*i));
    let mut wrong = Vec::new();
    let mut run = |case: &Case| {
        if let Some(what) = check(case).unwrap_or_else(|e| Some(e.to_string())) {
            wrong.push(format!("{} {}: {what}", spec.name, case.label));
        }
    };
    today.iter().for_each(|(_, case)| run(case));
    for (_, case) in &others {
        if !unlaunched() {
            break;
        }
        run(case);
    }
    wrong
}

/// Shaders and entries of an op. Cooperative matrices are few adapters' and have tests of their own.
#[cfg(feature = "gpu")]
fn entries(spec: &OpSpec) -> Vec<(&'static str, &'static str)> {
    let all = spec.shaders.iter().flat_map(|s| s.entries.iter().map(|e| (s.name, e.name)));
    all.filter(|(_, entry)| *entry != "coop").collect()
}

/// Kernels that were launched on any of the devices.
#[cfg(feature = "gpu")]
fn launched(devices: &[Device]) -> Vec<Launched> {
    let of = |device: &Device| match device {
        Device::Gpu(gpu) => gpu.launched(),
        _ => Vec::new(),
    };
    devices.iter().flat_map(of).collect()
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
    ("softmax", &["forward", "backward", "log_forward", "log_backward"], &["WG64", "WG256"]),
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
fn check_kernels(launched: &[Launched]) {
    use mixlora::device::parts::PRODUCT;
    use std::collections::BTreeSet;
    let size = |consts: &[(&str, u32)]| -> String {
        let chosen = consts.iter().filter(|c| ["WG", "STRIDE", "NJ", "R", "V", "X", "Y"].contains(&c.0));
        chosen.map(|(name, value)| format!("{name}{value}")).collect::<Vec<_>>().join(" ")
    };
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

fn difference(a: &[u32], b: &[u32]) -> Option<String> {
    let n = a.iter().zip(b).filter(|(a, b)| a != b).count();
    (a != b).then(|| format!("{n} of {} values differ between two runs", a.len()))
}
