//! What the GPU back ends launch and bind, by the device's own counters. Everything is only recorded: nothing is computed.
#![cfg(feature = "gpu")]

use mixlora::device::{Gpu, Stats};
use mixlora::mixture::{LinearSite, Units};
use mixlora::nn::{Choices, Format, Linear, Pass, Weight};
use mixlora::ops::{self, Case};
use mixlora::{DType, Device, Result, Stream, Tensor, backward};
use std::sync::Arc;

mod common;

fn inner(device: &Device) -> &Arc<Gpu> {
    match device {
        Device::Gpu(g) => g,
        other => panic!("{other:?} is not a GPU"),
    }
}

/// What `work` returns and adds to the counters.
fn counted<T>(gpu: &Gpu, work: impl FnOnce() -> Result<T>) -> (T, Stats) {
    gpu.reset_stats();
    let done = work().unwrap();
    (done, gpu.stats())
}

fn linear(device: &Device, d: usize, out: usize) -> Linear {
    let weight = Weight::new(device, out, d, &vec![0.5; out * d], Format::F32).unwrap();
    Linear { weight, bias: None }
}

/// Launches of routing in one forward pass of three linears that read the same input, and in the next one with the same
/// parameters: what is more than with the same choices frozen.
fn routing(device: &Device, method: &str, units: Units) -> [u64; 2] {
    let gpu = inner(device);
    let (rows, d) = (units.rows(), 256);
    let x = Tensor::full(device, &[rows, d], 0.5).unwrap().leaf();
    let linears: Vec<Linear> = [64, 32, 32].map(|out| linear(device, d, out)).into();
    let names = ["q", "k", "v"].iter().zip(&linears).map(|(n, l)| (n.to_string(), l.weight.rows())).collect();
    let site = LinearSite::alone("qkv", d, names);
    let method = common::method(method, serde_json::json!({ "num_factors": 8, "r": 4 }));
    let adapter = method.build(&site, device, Stream::new(1)).unwrap();
    let choices = Choices::record();
    let routed = Pass::new(units).with_choices(choices.clone());
    let (_, all) = counted(gpu, || adapter.forward(&x, &linears, &routed));
    let (_, again) = counted(gpu, || adapter.forward(&x, &linears, &routed));
    let frozen = routed.with_choices(choices.freeze());
    let (_, without) = counted(gpu, || adapter.forward(&x, &linears, &frozen));
    [all, again].map(|s| s.dispatches - without.dispatches)
}

/// The condition of B's choice on A's is one product of parameters; it does not look at the input.
const CONDITION_TABLE: u64 = 1;
/// The released form of the condition sums both of its operands first.
const SUMS_OF_RELEASED_TABLE: u64 = 2;

#[test]
fn routing_takes_three_launches_for_each_input() {
    let Some(device) = common::gpu() else { return };
    // The table, and what of it is made again in the next pass of the same step: that with a gradient.
    for (method, table, again) in [
        ("mixlora-cond", CONDITION_TABLE, 0),
        ("mixlora-cond-gated", CONDITION_TABLE, CONDITION_TABLE),
        ("vt-nlp", CONDITION_TABLE + SUMS_OF_RELEASED_TABLE, 0),
    ] {
        // Pooling, the product with all routers, top-k. A token is its own pooled row.
        for (units, launches) in [(Units::instances(&device, 2, 16).unwrap(), 3), (Units::tokens(32), 2)] {
            assert_eq!(routing(&device, method, units), [launches + table, launches + again], "{method}");
        }
    }
}

/// Bytes beyond the least that an op's cases may bind.
const USUAL: f64 = 1.2;

/// How many times the least bytes the cases of an op bind, forward and backward, where that is more than usual.
const EXCEPTIONS: &[(&str, f64, f64, &str)] = &[
    ("gate_groups", USUAL, 1.4, "the gradients of both operands read dy, each in a kernel of its own"),
    (
        "attention",
        1.4,
        2.5,
        "what each row's softmax summed to is kept; both backward kernels read all operands",
    ),
    ("condition_rows", USUAL, 1.5, "both gradients read dc, which is much where rows have one value"),
    ("elementwise", 2.0, 2.7, "a square binds its operand twice; a full tensor is written, then read"),
    ("embedding", SOME_ROWS, USUAL, "whole shards are bound, of which only the looked up rows are read"),
    ("factor_expand", 1.4, 2.0, "rows of one or two values: choices weigh as much as rows"),
    ("factor_scatter", OPERATOR, OPERATOR, "cases are those of the whole operator"),
    ("fused_ba_matmul", 2.0, 1.5, "a weight in two shards is two launches, each with all rows of x and y"),
    ("head_loss", SCRATCH, USUAL, "logits are computed block by block into scratch, and read there again"),
    ("layer_norm", 1.4, 3.8, "rows of three values keep two; gradients of w and b are composed of other ops"),
    ("matmul", USUAL, 1.5, "the gradient of each operand reads dy"),
    ("mixture_linears", OPERATOR, 5.5, "rows of three values: choices weigh as much as rows"),
    ("pool_rows", 1.5, USUAL, "rows of two values: their weights are half as much"),
    ("rms_norm", 1.3, 3.4, "rows of two values keep one; the gradient of w is composed of other ops"),
    ("rope", SOME_ROWS, SOME_ROWS, "angles of all positions are bound, of which only the used ones are read"),
    (
        "routing_load",
        1.7,
        USUAL,
        "counts per workgroup are scratch; weights of tokens are no input of the case",
    ),
    ("topk_routing", USUAL, 1.6, "rows of the condition's gradient are written, then summed"),
];
const SOME_ROWS: f64 = f64::INFINITY;
const SCRATCH: f64 = f64::INFINITY;
/// The shrink reads x, then each linear's product; backward, three kernels read dy.
const OPERATOR: f64 = 4.0;

/// Bytes of an absent operand's stand-in or of a parameter that no case counts.
const SMALL: f64 = 256.0;

/// The least bytes of a case's forward pass and what it bound; the same for its backward pass.
fn bytes(device: &Device, case: &Case) -> Result<[(u64, u64); 2]> {
    let gpu = inner(device);
    let size = |t: &Tensor| 4 * t.len() as u64;
    let inputs = case
        .inputs
        .iter()
        .map(|o| Ok(if o.has_grad() { o.on(device)?.leaf() } else { o.on(device)? }))
        .collect::<Result<Vec<Tensor>>>()?;
    let (y, forward) = counted(gpu, || (case.run)(&inputs));
    let values = y.iter().filter(|t| t.dtype() == DType::F32);
    let roots = values.map(|t| Ok((t, Tensor::full(device, t.dims(), 1.0)?))).collect::<Result<Vec<_>>>()?;
    let (gradients, back) = counted(gpu, || backward(&roots));
    let operands: u64 = inputs.iter().chain(&y).map(size).sum();
    let written: u64 = inputs.iter().filter_map(|t| gradients.get(t)).map(size).sum();
    let least = operands.max(case.bytes as u64);
    Ok([(least, forward.bytes_bound), (least + written, back.bytes_bound)])
}

#[test]
fn ops_bind_little_more_than_they_must() {
    let Some(device) = common::gpu() else { return };
    let mut failed = Vec::new();
    for spec in ops::ALL {
        let exception = EXCEPTIONS.iter().find(|e| e.0 == spec.name);
        let allowed = exception.map_or([USUAL; 2], |e| [e.1, e.2]);
        let mut worst = [0.0f64; 2];
        for case in (spec.cases)() {
            let counts = bytes(&device, &case).unwrap();
            for (i, (least, bound)) in counts.into_iter().enumerate() {
                let ratio = (bound as f64 - SMALL).max(0.0) / (least as f64).max(1.0);
                worst[i] = worst[i].max(ratio);
                if ratio > allowed[i] {
                    let way = ["forward", "backward"][i];
                    failed.push(format!("{} {}: {way} binds {bound}, least {least}", spec.name, case.label));
                }
            }
        }
        if let Some((op, _, _, why)) = exception
            && worst.iter().all(|&w| w <= USUAL)
        {
            failed.push(format!("{op} is no exception ({why}): {worst:?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The operator at a size of training: what the frozen linear must read and write, and little more.
#[test]
fn a_mixture_binds_little_more_than_its_linear_must() {
    use mixlora::mixture::{Selection, mixture_linears};
    let Some(device) = common::gpu() else { return };
    let (rows, d, out, factors, k) = (512, 576, 1536, 16, 8);
    let zeros = |dims: &[usize]| Tensor::zeros(&device, dims).unwrap();
    let (x, a, b) = (zeros(&[rows, d]).leaf(), zeros(&[factors, d]).leaf(), [zeros(&[factors, out]).leaf()]);
    let units = Units::instances(&device, 4, rows / 4).unwrap();
    let idx = Tensor::from_u32(&device, &[1, 2, 4, k], &[0, 1, 2, 3, 4, 5, 6, 7].repeat(8)).unwrap();
    let selection = Selection::new(idx, None, &units, factors, 1).unwrap();
    let linears = [linear(&device, d, out)];
    let run = || mixture_linears(&x, &linears, &a, &b, &selection, 0.5, None);
    let (_, stats) = counted(inner(&device), run);
    let least = 4 * (rows * d + d * out + rows * out) as u64;
    println!("{} of {least} bytes", stats.bytes_bound);
    assert!(stats.bytes_bound as f64 <= USUAL * least as f64, "{} of {least}", stats.bytes_bound);
}

/// Launches that bind much and compute nothing are submitted in time too.
#[test]
fn a_run_of_launches_that_bind_much_is_split() {
    let Some(device) = common::gpu() else { return };
    let gpu = inner(&device);
    let (rows, launches) = (1 << 14, 130);
    let table = Tensor::zeros(&device, &[rows, 1024]).unwrap();
    let index = Tensor::from_u32(&device, &[1], &[7]).unwrap();
    let (_, stats) = counted(gpu, || (0..launches).try_for_each(|_| table.gather_rows(&index).map(|_| ())));
    // 64 MiB each: 8 GiB are 128 of them.
    assert_eq!((stats.dispatches, stats.submits), (130, 1), "{stats:?}");
}
