//! What a mixture layer costs in device memory beside the frozen layer: peak of forward and backward, by the
//! device's own counters.
//!
//! ```text
//! difference <= 2 x (2 M r + M) x 4 bytes + 2 x the gradients of trained parameters
//! ```
//! Rows M, chosen factors r. Two arrays over rows and choices (`u`, `v`; with gates two more), one over rows;
//! nothing grows with M x r x d (64 MiB at M = d = 2048, r = 4) or with d x d (16 MiB). The second gradient of the
//! bound is room for partials of segmented sums, which today have none. The parameters are there before and after
//! and do not count; `x` is held by the caller in both cases.
//!
//! Measured at d = 2048, E = 64, on the CPU and the same within 200 B on a GPU, for (M, r) = (2048, 4), (4096, 4),
//! (2048, 8): `mixlora-cond` 1 082 624, 1 115 392, 1 115 904 B (gradients: 1 048 576 B); `mixlora-cond-gated`
//! 4 259 840, 4 259 840, 6 356 992 B (gradients: 4 194 304 B, with r = 8 6 291 456 B).

use mixlora::mixture::{LinearSite, RouterGradient, Units, find};
use mixlora::nn::{Format, Linear, Param, Pass, Weight};
use mixlora::{Device, Result, Stream, Tensor};

mod common;

/// Width in and out; debug builds multiply slowly.
const D: usize = if cfg!(debug_assertions) { 512 } else { 2048 };
const E: usize = 64;
const UNITS: usize = 8;

struct Measured {
    /// Bytes at the peak, mixture minus frozen.
    difference: u64,
    /// Bytes of one gradient of each trained parameter.
    gradients: u64,
}

impl Measured {
    fn allowed(&self, m: usize, r: usize) -> u64 {
        let rows = 2 * (2 * m * r + m) as u64 * 4;
        // The pool hands out buffers in steps of 1/8. Choices, lists, logits `[G, E]` and the condition table
        // `[E, E, r]` with what leads to it depend on neither M nor d.
        let fixed = (3 * E * E * r + 16 * UNITS * E) as u64 * 4 + (16 << 10);
        (rows + 2 * self.gradients + fixed) * 9 / 8
    }
}

/// Bytes at the peak of a step beyond what was there before, and of which it keeps `kept`.
fn peak(device: &Device, kept: usize, step: impl Fn() -> Result<()>) -> Result<u64> {
    let memory = device.memory().expect("a counting device");
    let before = memory.current();
    memory.reset_peak();
    step()?;
    assert_eq!(memory.current(), before + kept as u64, "what a step keeps");
    Ok(memory.peak() - before)
}

fn measure(device: &Device, method: &str, m: usize, r: usize) -> Result<Measured> {
    let draw = |name: &str, n: usize| Stream::new(7).named(name).normal_vec(n, 1.0);
    let x = Tensor::from_f32(device, &[m, D], &draw("x", m * D))?;
    let weight = Weight::new(device, D, D, &draw("w", D * D), Format::F32)?;
    let linears = [Linear { weight, bias: None }];
    let method = find(method)?.defaults();
    let sizes = serde_json::json!({ "num_factors": E, "r": r });
    let (method, _) = method.stored(sizes.as_object().expect("sizes by name"))?;
    let site = LinearSite::alone("layer", D, vec![("q_proj".into(), D)]);
    let adapter = method.build(&site, device, Stream::new(1))?;
    let pass = Pass::training(Units::instances(device, UNITS, m / UNITS)?, Stream::new(2));
    let x = x.leaf();
    let step = |y: &dyn Fn() -> Result<Tensor>| {
        let gradients = y()?.sum()?.backward()?;
        assert!(gradients.get(&x).is_some());
        Ok(())
    };
    // Without a gradient the condition's table holds until the next step; it is kept where it is small.
    let gated = method.options().router_gradient() == RouterGradient::Yes;
    let table = if !gated && 8 * E * r <= D { 4 * E * E * r } else { 0 };
    let frozen = peak(device, 0, || step(&|| x.linear(&linears[0].weight, None)))?;
    let mixture = peak(device, table, || step(&|| Ok(adapter.forward(&x, &linears, &pass)?.swap_remove(0))))?;
    assert!(frozen >= 4 * (m * D) as u64, "the counters count");
    let bytes = |p: &Param| 4 * p.value().len() as u64;
    let gradients = adapter.params().iter().filter(|p| p.trainable()).map(bytes).sum();
    Ok(Measured { difference: mixture.saturating_sub(frozen), gradients })
}

fn check(open: impl Fn() -> Device) {
    for method in ["mixlora-cond", "mixlora-cond-gated"] {
        let mut first = None;
        for (m, r) in [(D / 2, 4), (D, 4), (D / 2, 8)] {
            let got = measure(&open(), method, m, r).unwrap();
            let allowed = got.allowed(m, r);
            println!(
                "{method}: M {m}, d {D}, r {r}: {} B more at the peak, allowed {allowed}",
                got.difference
            );
            assert!(got.difference <= allowed, "{method}: M {m}, r {r}: {} > {allowed}", got.difference);
            // What grows is what the formula says: rows times choices, and gradients.
            let (base, base_allowed) = *first.get_or_insert((got.difference, allowed));
            let (grown, may) = (got.difference.saturating_sub(base), allowed - base_allowed);
            assert!(grown <= may, "{method}: M {m}, r {r}: grows by {grown} > {may}");
        }
    }
}

#[test]
fn a_mixture_on_the_cpu_costs_rows_times_choices() {
    check(Device::cpu);
}

/// Counted while the launches are recorded: nothing waits for them, and this much work is not even submitted.
#[test]
fn a_mixture_on_the_gpu_costs_rows_times_choices() {
    if common::gpu().is_some() {
        check(|| common::gpu().expect("just opened"));
    }
}
