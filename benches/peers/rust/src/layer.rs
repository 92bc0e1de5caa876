//! A Conditional MixLoRA layer and a LoRA layer beside the frozen linear, forward and backward.

use crate::values::{sample, values};
use crate::{Candidate, Result, seconds, timed};
use mixlora::mixture::{LinearSite, Pool, Span, find};
use mixlora::nn::{LinearGroup, Pass, SiteAdapter, SiteAdapters};
use mixlora::{Device, Format, Linear, Stream, Tensor, Weight, backward};

/// Sizes of the layer and of its batch.
#[derive(Clone, Copy)]
pub struct Of {
    pub batch: usize,
    pub seq: usize,
    pub d_in: usize,
    pub d_out: usize,
    pub factors: usize,
    pub r: usize,
}

pub fn candidates(of: Of, threads: usize, repeats: usize) -> Result<Vec<Candidate>> {
    let device = Device::cpu_with_threads(threads)?;
    let frozen = |name| candidate(name, None, of, &device, repeats);
    let adapted = |name, method| candidate(name, Some(method), of, &device, repeats);
    Ok(vec![
        frozen("mixlora frozen")?,
        adapted("mixlora mixlora-cond", "mixlora-cond")?,
        adapted("mixlora lora", "lora")?,
    ])
}

fn candidate(
    name: &'static str,
    method: Option<&str>,
    of: Of,
    device: &Device,
    repeats: usize,
) -> Result<Candidate> {
    let Of { batch, seq, d_in, d_out, factors, r } = of;
    let tensor = |seed, d| Tensor::from_f32(device, &[batch, seq, d], &values(seed, batch * seq * d, 1.0));
    let (x, dy) = (tensor(1, d_in)?.leaf(), tensor(2, d_out)?);
    let weight = Weight::new(device, d_out, d_in, &values(3, d_out * d_in, 0.1), Format::F32)?;
    let linears = vec![Linear { weight, bias: None }];
    let group = LinearGroup::at(0, linears);
    let mut adapters = SiteAdapters::default();
    match method {
        None => {}
        Some(method) => {
            let site = LinearSite::alone("layer", d_in, vec![(String::new(), d_out)]);
            let mut method = find(method)?.defaults().with("r", r)?;
            if method.spec().option_names().contains(&"num_factors") {
                method = method.with("num_factors", factors)?;
            }
            let adapter = method.build(&site, device, Stream::new(1))?;
            for (i, p) in adapter.params().iter().enumerate() {
                let (seed, value) = (10 + i as u32, p.value());
                p.set(Tensor::from_f32(device, value.dims(), &values(seed, value.len(), 0.1))?)?;
            }
            adapters.set(0, SiteAdapter::Linears(adapter, Vec::new()));
        }
    }
    let adapters = std::sync::Arc::new(adapters);
    let units = Pool::Real.units(device, &vec![Span { len: seq, prompt: seq }; batch], seq)?;
    let run = move |keep: bool| -> Result<(f64, Vec<f32>)> {
        let pass = Pass::training(units.clone(), Stream::new(2)).with_adapters(adapters.clone());
        let (forward, y) = timed(|| Ok(group.forward(&x, &pass)?.swap_remove(0)))?;
        let all = if keep { sample(&y.to_f32()?) } else { Vec::new() };
        let (back, gradients) = timed(|| Ok(backward(&[(&y, dy.clone())])?))?;
        let dx = gradients.get(&x).ok_or("no gradient")?;
        let all = if keep { [all, sample(&dx.to_f32()?)].concat() } else { all };
        Ok((forward + back, all))
    };
    let all = run(true)?.1;
    Ok(Candidate::new(name, all, move || Ok(vec![("both", seconds(repeats, || Ok(run(false)?.0))?)])))
}
