//! Devices: limits, budgets, loss, sharing, order, memory.
#![cfg(feature = "gpu")]

use mixlora::device::Gpu;
use mixlora::{Device, Error, Tensor, check, ops, wgpu};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

mod common;

use common::share::{Share, longest_first};

fn inner(device: &Device) -> &Arc<Gpu> {
    match device {
        Device::Gpu(g) => g,
        other => panic!("{other:?} is not a GPU"),
    }
}

/// A device opened by a host application with the given limits, and shared; nothing when there is no adapter.
fn shared(limits: wgpu::Limits) -> Option<Result<Device, Error>> {
    common::gpu()?;
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = wgpu::Backends::PRIMARY;
    let instance = wgpu::Instance::new(desc);
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))
        .expect("common::gpu found one");
    let (device, queue) = pollster::block_on(
        adapter.request_device(&wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() }),
    )
    .expect("the limits are below those of every adapter");
    Some(Device::from_wgpu(&adapter, device, queue))
}

/// What the tests compute: y = x * w, and the gradient of its sum with respect to x.
fn step(device: &Device, n: usize) -> mixlora::Result<(Vec<f32>, Vec<f32>)> {
    let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let x = Tensor::from_f32(device, &[n], &values)?.leaf();
    let w = Tensor::full(device, &[n], 3.0)?;
    let y = x.mul(&w)?;
    let grads = y.sum()?.backward()?;
    let dx = grads.get(&x).expect("x is a leaf").to_f32()?;
    Ok((y.to_f32()?, dx))
}

fn assert_step(device: &Device) {
    let (y, dx) = step(device, 1000).unwrap();
    assert!(y.iter().enumerate().all(|(i, &v)| v == 3.0 * i as f32));
    assert!(dx.iter().all(|&v| v == 3.0));
}

#[test]
fn budget_is_kept_and_life_goes_on() {
    let Some(gpu) = common::gpu() else { return };
    for device in [gpu, Device::cpu()] {
        let memory = device.memory().unwrap();
        memory.set_budget(1 << 20);
        let small = Tensor::full(&device, &[1000], 1.0).unwrap();
        match Tensor::zeros(&device, &[1 << 20]) {
            Err(Error::OutOfMemory { requested, budget, .. }) => {
                assert!(requested >= 4 << 20 && budget == 1 << 20);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(small.sum().unwrap().item().unwrap(), 1000.0);
        assert!(memory.held() <= 1 << 20);
        // Buffers kept for reuse make room before an allocation is refused.
        drop(Tensor::zeros(&device, &[150_000]).unwrap());
        Tensor::zeros(&device, &[200_000]).unwrap();
        memory.set_budget(u64::MAX);
        assert_step(&device);
    }
}

#[test]
fn more_than_one_binding_is_refused() {
    let Some(gpu) = common::gpu() else { return };
    let limit = inner(&gpu).limits().max_storage_buffer_binding_size.min(4 * u32::MAX as u64 - 4);
    let words = (limit / 4 + 1) as usize;
    let before = gpu.memory().unwrap().held();
    match Tensor::zeros(&gpu, &[words]) {
        Err(e @ Error::Shape { .. }) => assert!(e.to_string().contains("binding"), "{e}"),
        Err(Error::OutOfMemory { .. }) if limit > 1 << 31 => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(gpu.memory().unwrap().held(), before);
    assert!(matches!(Tensor::zeros(&gpu, &[1 << 20, 1 << 20]), Err(Error::Shape { .. })));
    assert_step(&gpu);
}

#[test]
fn a_tensor_of_exactly_one_binding_works() {
    let Some(gpu) = shared(wgpu::Limits::defaults()) else { return };
    let gpu = gpu.unwrap();
    let words = (128 << 20) / 4;
    let y = Tensor::zeros(&gpu, &[words]).unwrap().scale(2.0).unwrap();
    assert_eq!(y.sum().unwrap().item().unwrap(), 0.0);
}

fn lose(device: &Device) {
    let x = Tensor::full(device, &[1000], 2.0).unwrap();
    let recorded = x.scale(2.0).unwrap();
    inner(device).raw().0.destroy();
    let lost = |what: &str, e: Option<Error>| match e {
        Some(Error::DeviceLost(_)) => {}
        other => panic!("{what}: {other:?}"),
    };
    lost("read", recorded.to_f32().err());
    lost("dispatch", recorded.scale(2.0).err());
    lost("alloc", Tensor::zeros(device, &[123_456]).err());
    lost("reused buffer", Tensor::full(device, &[1000], 1.0).err());
    lost("upload", Tensor::from_f32(device, &[2], &[1.0, 2.0]).err());
    lost("copy", x.copy().err());
    lost("async read", pollster::block_on(x.read_async()).err());
    lost("profile", inner(device).start_profile().and_then(|_| device.sync()).err());
    lost("sync", device.sync().err());
    assert_step(&Device::cpu());
}

#[test]
fn a_lost_device_is_an_error() {
    let Some(gpu) = common::gpu() else { return };
    lose(&gpu);
}

#[test]
fn a_lost_shared_device_is_an_error() {
    let Some(gpu) = shared(wgpu::Limits::defaults()) else { return };
    lose(&gpu.unwrap());
}

#[test]
fn a_readback_under_way_ends_when_the_device_is_lost() {
    let Some(gpu) = common::gpu() else { return };
    let x = Tensor::full(&gpu, &[1000], 2.0).unwrap();
    let device = gpu.clone();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for _ in 0..1000 {
            if let Err(e) = x.scale(2.0).and_then(|y| y.to_f32()) {
                return sender.send(e);
            }
        }
        sender.send(Error::Gpu("never lost".into()))
    });
    std::thread::sleep(std::time::Duration::from_millis(50));
    inner(&device).raw().0.destroy();
    let e = receiver.recv_timeout(std::time::Duration::from_secs(60)).expect("does not hang");
    assert!(matches!(e, Error::DeviceLost(_)), "{e}");
}

#[test]
fn wrong_operands_are_typed_errors() {
    let Some(gpu) = common::gpu() else { return };
    let cpu = Device::cpu();
    let a = Tensor::zeros(&gpu, &[2, 3]).unwrap();
    let b = Tensor::zeros(&gpu, &[2, 4]).unwrap();
    let i = Tensor::from_u32(&gpu, &[2, 3], &[0; 6]).unwrap();
    let c = Tensor::zeros(&cpu, &[2, 3]).unwrap();
    assert!(matches!(a.mul(&b), Err(Error::Shape { op: "elementwise", .. })));
    assert!(matches!(a.mul(&i), Err(Error::DType { .. })));
    assert!(matches!(a.mul(&c), Err(Error::Shape { .. })));
    assert!(matches!(i.to_f32(), Err(Error::DType { .. })));
    assert!(matches!(pollster::block_on(i.read_async()), Err(Error::DType { .. })));
    assert!(matches!(a.to_u32(), Err(Error::DType { .. })));
    assert!(matches!(a.item(), Err(Error::Shape { .. })));
    assert!(matches!(a.reshape(&[7]), Err(Error::Shape { .. })));
    assert!(matches!(Tensor::from_f32(&gpu, &[3], &[1.0]), Err(Error::Shape { .. })));
    assert!(matches!(a.rms_norm(&a, 1e-5), Err(Error::Shape { op: "rms_norm", .. })));
}

#[test]
fn an_unknown_name_lists_the_adapters() {
    match Device::gpu_named("no such adapter") {
        Err(Error::NoAdapter(text)) => match Device::list().first() {
            Some(first) => assert!(text.contains(&first.name), "{text}"),
            None => assert!(text.contains("no adapters"), "{text}"),
        },
        other => panic!("{other:?}"),
    }
    assert!(matches!(Device::parse(""), Err(Error::Config { .. })));
}

#[test]
fn a_device_below_the_floor_is_refused() {
    let Some(device) = shared(wgpu::Limits::downlevel_defaults()) else { return };
    match device {
        Err(Error::BelowFloor { limit, have, need, .. }) => {
            assert_eq!((limit, have, need), ("max_storage_buffers_per_shader_stage", 4, 8));
        }
        other => panic!("{other:?}"),
    }
}

/// The floor: 8 storage buffers, 16 KiB, 256 invocations, no immediates, no features. Parameters travel in a
/// uniform buffer there. Every op must give the bits that tests/ops.rs compares with the reference.
#[test]
fn the_floor_is_enough_for_every_op() {
    if shared(wgpu::Limits::defaults()).is_none() {
        return;
    }
    let ops = longest_first(ops::ALL.to_vec());
    let next = AtomicUsize::new(0);
    // A driver compiles the kernels of one device one after the other.
    let failed: Vec<String> = std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(|| floor_against_best(&ops, &next)));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// What the next ops give on a device with the least limits and no features, beside one with all it has.
fn floor_against_best(ops: &[&ops::OpSpec], next: &AtomicUsize) -> Vec<String> {
    let floor = shared(wgpu::Limits::defaults()).unwrap().unwrap();
    assert!(inner(&floor).features().is_empty());
    let best = common::gpu().unwrap();
    let share = Share::one_in(18, &best);
    floor.set_guard(true);
    let mut failed = Vec::new();
    while let Some(spec) = ops.get(next.fetch_add(1, Relaxed)) {
        for (i, case) in (spec.cases)().iter().enumerate() {
            if !share.holds(i) {
                continue;
            }
            if check::bits(case, &floor).unwrap() != check::bits(case, &best).unwrap() {
                failed.push(format!("{} {}: other bits than with all features", spec.name, case.label));
            }
            if !floor.check_guards().unwrap() {
                failed.push(format!("{} {}: wrote behind a buffer", spec.name, case.label));
            }
        }
    }
    failed
}

#[test]
fn uploads_keep_their_place_among_recorded_work() {
    let Some(gpu) = common::gpu() else { return };
    let first = Tensor::full(&gpu, &[512], 1.0).unwrap();
    gpu.sync().unwrap();
    let y = first.scale(2.0).unwrap();
    // The next tensor takes over this memory; the recorded kernel must still see the old values.
    let before = gpu.memory().unwrap().held();
    drop(first);
    let second = Tensor::from_f32(&gpu, &[512], &[50.0; 512]).unwrap();
    assert_eq!(gpu.memory().unwrap().held(), before, "the buffer is meant to be reused");
    assert_eq!(y.to_f32().unwrap(), [2.0; 512]);
    assert_eq!(second.to_f32().unwrap(), [50.0; 512]);
}

#[test]
fn long_runs_are_split_into_submits() {
    for device in [common::gpu(), shared(wgpu::Limits::defaults()).map(Result::unwrap)] {
        let Some(device) = device else { return };
        let gpu = inner(&device);
        let mut x = Tensor::from_f32(&device, &[300], &[1.0; 300]).unwrap();
        gpu.reset_stats();
        for i in 0..9001 {
            // Another factor each time: a parameter that arrives late or twice changes the result.
            x = x.scale(if i % 2 == 0 { 2.0 } else { 0.5 }).unwrap();
        }
        assert_eq!(x.to_f32().unwrap(), [2.0; 300]);
        let stats = gpu.stats();
        assert_eq!(stats.dispatches, 9001);
        assert_eq!(stats.submits, 3, "{stats:?}");
        assert_eq!(stats.readbacks, 1);
    }
}

#[test]
fn a_profile_names_the_kernels() {
    let Some(device) = common::gpu() else { return };
    let gpu = inner(&device);
    let x = Tensor::full(&device, &[4, 600], 1.0).unwrap();
    let w = Tensor::full(&device, &[600], 1.0).unwrap();
    let unprofiled = x.scale(3.0).unwrap();
    if !gpu.start_profile().unwrap() {
        assert!(!gpu.features().contains(wgpu::Features::TIMESTAMP_QUERY));
        assert!(gpu.take_profile().unwrap().is_empty());
        return;
    }
    let y = x.rms_norm(&w, 1e-5).unwrap().add(&unprofiled).unwrap();
    let times = gpu.take_profile().unwrap();
    let names: Vec<_> = times.iter().map(|t| (t.shader, t.entry)).collect();
    assert_eq!(names, [("rms_norm", "forward"), ("elementwise", "add")]);
    assert!(times.iter().all(|t| t.nanoseconds >= 0.0 && t.nanoseconds < 60e9), "{times:?}");
    assert!(times.iter().any(|t| t.nanoseconds > 0.0), "{times:?}");
    assert!(gpu.take_profile().unwrap().is_empty(), "taken");
    assert_eq!(y.dims(), [4, 600]);
    assert_step(&device);
}

#[test]
fn a_profile_holds_every_launch() {
    let Some(device) = common::gpu() else { return };
    let gpu = inner(&device);
    if !gpu.start_profile().unwrap() {
        return;
    }
    let mut x = Tensor::full(&device, &[4], 1.0).unwrap();
    for _ in 0..2100 {
        x = x.scale(-1.0).unwrap();
    }
    assert_eq!(gpu.take_profile().unwrap().len(), 2101, "filled, and negated 2100 times");
    assert_eq!(x.to_f32().unwrap(), [1.0; 4]);
}

#[test]
fn reads_can_be_awaited() {
    let Some(gpu) = common::gpu() else { return };
    let values: Vec<f32> = (0..5000).map(|i| i as f32).collect();
    let x = Tensor::from_f32(&gpu, &[5000], &values).unwrap();
    let y = x.scale(2.0).unwrap();
    let (a, b) = pollster::block_on(async { (x.read_async().await, y.read_async().await) });
    assert_eq!(a.unwrap(), values);
    assert!(b.unwrap().iter().zip(&values).all(|(y, x)| *y == 2.0 * x));
    let empty = Tensor::zeros(&gpu, &[0]).unwrap();
    assert!(pollster::block_on(empty.read_async()).unwrap().is_empty());
}

#[test]
fn memory_is_flat() {
    let Some(gpu) = common::gpu() else { return };
    for device in [gpu, Device::cpu()] {
        let memory = device.memory().unwrap();
        assert_eq!(memory.current(), 0);
        for _ in 0..5 {
            step(&device, 256).unwrap();
        }
        let (held, peak) = (memory.held(), memory.peak());
        for _ in 0..1000 {
            step(&device, 256).unwrap();
        }
        assert_eq!(memory.current(), 0);
        assert_eq!((memory.held(), memory.peak()), (held, peak), "{device:?}");
        memory.reset_peak();
        assert_eq!(memory.peak(), 0);
    }
}

#[test]
fn devices_work_side_by_side() {
    if common::gpu().is_none() {
        return;
    }
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                let own = Device::gpu().unwrap();
                (0..20).for_each(|_| assert_step(&own));
            });
        }
    });
}

#[test]
fn threads_share_a_device() {
    let Some(gpu) = common::gpu() else { return };
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| (0..100).for_each(|_| assert_step(&gpu)));
        }
    });
}

#[test]
fn every_adapter_is_listed_with_its_limits() {
    for a in Device::list() {
        assert!(!a.name.is_empty());
        assert!(a.limits.max_buffer_size > 0);
    }
}

/// What a mixture costs in launches over the frozen linear alone, given the selection and its sorted lists.
#[test]
fn a_mixture_adds_few_launches() {
    use mixlora::mixture::{Selection, Units, mixture_linears};
    use mixlora::{Format, Linear, Weight, backward};
    let Some(device) = common::gpu() else { return };
    let gpu = inner(&device);
    let (rows, d, factors, k) = (32, 64, 8, 4);
    let full = |dims: &[usize]| Tensor::full(&device, dims, 0.5).unwrap();
    let weight = Weight::new(&device, d, d, &vec![0.5; d * d], Format::F32).unwrap();
    let linear = [Linear { weight: weight.clone(), bias: None }];
    let (x, seed) = (full(&[rows, d]).leaf(), full(&[rows, d]));
    let (a, b) = (full(&[factors, d]).leaf(), [full(&[factors, d]).leaf()]);
    let units = Units::instances(&device, 2, rows / 2).unwrap();
    let idx =
        Tensor::from_u32(&device, &[1, 2, 2, k], &[0, 1, 2, 3, 4, 5, 6, 7, 7, 6, 5, 4, 3, 2, 1, 0]).unwrap();
    for gated in [false, true] {
        let gates = gated.then(|| full(&[1, 2, k]).leaf());
        let selection = Selection::new(idx.clone(), gates, &units, factors, 1).unwrap();
        let mixture = || mixture_linears(&x, &linear, &a, &b, &selection, 0.5, None).unwrap().swap_remove(0);
        backward(&[(&mixture(), seed.clone())]).unwrap();
        let count = |y: &dyn Fn() -> Tensor| {
            device.sync().unwrap();
            gpu.reset_stats();
            let y = y();
            let forward = gpu.stats().dispatches;
            backward(&[(&y, seed.clone())]).unwrap();
            gpu.flush().unwrap();
            let stats = gpu.stats();
            assert_eq!((stats.submits, stats.readbacks), (1, 0), "{stats:?}");
            (forward, stats.dispatches - forward)
        };
        let frozen = count(&|| x.linear(&weight, None).unwrap());
        let routed = count(&mixture);
        let (forward, back) = (routed.0 - frozen.0, routed.1 - frozen.1);
        println!("gated {gated}: {forward} more forward, {back} more backward");
        assert!(forward <= 2 && back <= 4, "{forward} more forward, {back} more backward");
    }
}
