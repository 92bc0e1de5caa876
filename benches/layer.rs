//! A mixture layer beside its frozen linear on the CPU, forward and backward: `cargo bench --bench layer`.

use criterion::{Criterion, criterion_group, criterion_main};
use mixlora::mixture::{LinearSite, Pool, Span, find};
use mixlora::nn::{LinearGroup, Pass, SiteAdapter, SiteAdapters};
use mixlora::{Device, Format, Linear, Stream, Tensor, Weight, backward};
use std::sync::Arc;

const BATCH: usize = 4;
const SEQ: usize = 128;

/// One forward and backward pass of a `d_in -> d_out` layer.
fn run(group: &LinearGroup, pass: &Pass, x: &Tensor, dy: &Tensor) {
    let y = group.forward(&x.leaf(), pass).expect("forward").swap_remove(0);
    backward(&[(&y, dy.clone())]).expect("backward");
}

fn layers(c: &mut Criterion) {
    let cpu = Device::cpu();
    for (d_in, d_out) in [(576, 1536), (2048, 2048)] {
        let normal = |name: &str, n: usize| Stream::new(1).named(name).normal_vec(n, 0.05);
        let weight = Weight::new(&cpu, d_out, d_in, &normal("w", d_out * d_in), Format::F32).expect("weight");
        let linear = Linear { weight, bias: None };
        let x = Tensor::from_f32(&cpu, &[BATCH, SEQ, d_in], &normal("x", BATCH * SEQ * d_in)).expect("x");
        let dy =
            Tensor::from_f32(&cpu, &[BATCH, SEQ, d_out], &normal("dy", BATCH * SEQ * d_out)).expect("dy");
        let spans = [Span { len: SEQ, prompt: SEQ }; BATCH];
        let pass = Pass::new(Pool::Real.units(&cpu, &spans, SEQ).expect("units"));
        let mut runs = c.benchmark_group(format!("{d_in}->{d_out}"));
        let group = LinearGroup::at(0, vec![linear.clone()]);
        runs.bench_function("frozen", |b| b.iter(|| run(&group, &pass, &x, &dy)));
        for name in ["lora", "mixlora-cond", "mixlora-cond-gated", "smora"] {
            let site = LinearSite::alone("bench", d_in, vec![(String::new(), d_out)]);
            let method = find(name).expect("method").defaults();
            let adapter = method.build(&site, &cpu, Stream::new(2)).expect("adapter");
            let mut adapters = SiteAdapters::default();
            adapters.set(0, SiteAdapter::Linears(adapter, Vec::new()));
            let pass = pass.clone().with_adapters(Arc::new(adapters));
            runs.bench_function(name, |b| b.iter(|| run(&group, &pass, &x, &dy)));
        }
    }
}

criterion_group!(benches, layers);
criterion_main!(benches);
