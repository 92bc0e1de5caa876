//! Accumulation, padding and packing.

use crate::rig::{D, Outcome, Rig, SEQ, SPANS, changed, chosen, devices, groups, labels, methods};
use mixlora::check::Deviation;
use mixlora::mixture::{Method, MethodSpec, Pool, Span, Units};
use mixlora::nn::{Choices, Pass};
use mixlora::{Device, Stream, Tensor, backward};
use serde_json::json;
use std::collections::BTreeMap;

fn exact(device: &Device) -> bool {
    device.same(&Device::reference())
}

/// Methods without statistics over a batch.
fn plain_methods() -> impl Iterator<Item = (&'static MethodSpec, Method)> {
    let none = json!({
        "aux_loss_coef": 0.0, "entropy_coef": 0.0, "gate_loss_coef": 0.0, "z_loss_coef": 0.0, "sparse_coef": 0.0,
        "hinge_coef": 0.0, "contrast_coef": 0.0,
    });
    // What is drawn depends on the place in the batch.
    let settled = methods().filter(|(_, c)| c.options().draws() == 1);
    settled.map(move |(s, c)| (s, changed(&c, none.clone())))
}

/// Outputs and gradients of some instances of the batch, with seeds by row.
fn part(rig: &Rig, instances: std::ops::Range<usize>) -> Outcome {
    let (first, rows) = (instances.start * SEQ, instances.len() * SEQ);
    let x = rig.x().to_f32().unwrap()[first * D..(first + rows) * D].to_vec();
    let x = Tensor::from_f32(&rig.device, &[rows, D], &x).unwrap().leaf();
    let spans: Vec<Span> = SPANS[instances.clone()].to_vec();
    let pass = Pass::training(Pool::Real.units(&rig.device, &spans, SEQ).unwrap(), Stream::new(5));
    let pass = pass.with_labels(labels(&rig.device, instances));
    let y = rig.forward(&x, &pass).unwrap();
    let seeds: Vec<Tensor> = y
        .iter()
        .enumerate()
        .map(|(i, t)| {
            let width = t.shape().last();
            let all = Stream::new(8).fork(i as u64).normal_vec(SPANS.len() * SEQ * width, 1.0);
            Tensor::from_f32(&rig.device, t.dims(), &all[first * width..(first + rows) * width]).unwrap()
        })
        .collect();
    let gradients = backward(&y.iter().zip(seeds).collect::<Vec<_>>()).unwrap();
    let mut all = BTreeMap::new();
    for p in rig.params() {
        if let Some(g) = p.gradient(&gradients) {
            all.insert(p.name(), g.to_f64().unwrap());
        }
    }
    Outcome(all)
}

#[test]
fn gradients_of_two_micro_batches_add_up_to_one_batch() {
    for device in devices() {
        let bound = if exact(&device) { 1e-10 } else { 1e-5 };
        for (spec, config) in plain_methods() {
            for outs in groups(spec) {
                let rig = Rig::new(&config, outs, &device);
                let (one, mut sum, second) = (part(&rig, 0..3), part(&rig, 0..1), part(&rig, 1..3));
                assert!(!one.0.is_empty());
                for (name, values) in &mut sum.0 {
                    values.iter_mut().zip(&second.0[name]).for_each(|(a, b)| *a += b);
                }
                let e = sum.error(&one);
                assert!(e <= bound, "{} {outs:?} on {device:?}: {e:.1e}", spec.name);
            }
        }
    }
}

#[test]
fn padding_changes_nothing_of_real_rows() {
    for device in devices() {
        for (spec, config) in plain_methods() {
            let config = changed(&config, json!({ "lora_dropout": 0.3 }));
            for (outs, pool) in groups(spec).iter().flat_map(|g| [(g, Pool::Real), (g, Pool::PromptMask)]) {
                let rig = Rig::new(&config, outs, &device);
                let run = |padding: f32| {
                    let mut x = rig.x().to_f32().unwrap();
                    for (i, s) in SPANS.iter().enumerate() {
                        x[(i * SEQ + s.len) * D..(i + 1) * SEQ * D].fill(padding);
                    }
                    let x = Tensor::from_f32(&device, rig.x().dims(), &x).unwrap();
                    let record = Choices::record();
                    let y = rig.forward(&x, &rig.pass(pool).with_choices(record.clone())).unwrap();
                    let real = |t: &Tensor| -> Vec<f64> {
                        let (v, w) = (t.to_f64().unwrap(), t.shape().last());
                        let spans = SPANS.iter().enumerate();
                        spans.flat_map(|(i, s)| v[i * SEQ * w..(i * SEQ + s.len) * w].to_vec()).collect()
                    };
                    // Choices per instance; choices per token differ where the tokens do.
                    let idx = chosen(&record).filter(|t| t.dims().len() == 4 && t.dims()[2] == SPANS.len());
                    (y.iter().map(real).collect::<Vec<_>>(), idx.map(|t| t.to_u32().unwrap()))
                };
                assert!(run(0.0) == run(7.5), "{} {outs:?} {pool:?} on {device:?}", spec.name);
            }
        }
    }
}

#[test]
fn packed_instances_are_separate_ones() {
    let starts = [0, 4, 5, 11];
    for device in devices() {
        let bound = if exact(&device) { 1e-12 } else { 1e-5 };
        for (spec, config) in plain_methods() {
            for outs in groups(spec) {
                let rig = Rig::new(&config, outs, &device);
                let x = Stream::new(12).normal_vec(11 * D, 1.0);
                let run = |starts: &[usize], instances: std::ops::Range<usize>| {
                    let (first, last) = (starts[0], starts[starts.len() - 1]);
                    let weight: Vec<f32> = starts
                        .windows(2)
                        .flat_map(|w| vec![1.0 / (w[1] - w[0]) as f32; w[1] - w[0]])
                        .collect();
                    let starts: Vec<usize> = starts.iter().map(|s| s - first).collect();
                    let units = Units::ranges(&device, &starts, &weight).unwrap();
                    let x = Tensor::from_f32(&device, &[last - first, D], &x[first * D..last * D]).unwrap();
                    let mut values = BTreeMap::new();
                    let pass = Pass::training(units, Stream::new(5)).with_labels(labels(&device, instances));
                    for (i, y) in rig.forward(&x, &pass).unwrap().iter().enumerate() {
                        values.insert(format!("y{i}"), y.to_f64().unwrap());
                    }
                    values
                };
                let packed = run(&starts, 0..3);
                let mut separate: BTreeMap<String, Vec<f64>> = BTreeMap::new();
                for (i, w) in starts.windows(2).enumerate() {
                    run(w, i..i + 1).into_iter().for_each(|(n, v)| separate.entry(n).or_default().extend(v));
                }
                for (name, want) in &separate {
                    let e = Deviation::of(&packed[name], want, 1e-3).max;
                    assert!(e <= bound, "{} {outs:?} on {device:?}: {e:.1e}", spec.name);
                }
            }
        }
    }
}
