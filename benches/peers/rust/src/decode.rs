//! A prompt at once, and tokens one by one behind it, with weights as they are in the file.

use crate::values::{tokens, values};
use crate::{Candidate, Result, timed};
use mixlora::adapter::{ALL_LINEAR, Adapter, Conversation};
use mixlora::mixture::find;
use mixlora::model::{Model, Sampler, Sampling};
use mixlora::{Device, Stream, Tensor};
use std::path::Path;

pub fn candidates(model: &str, prompt: usize, generated: usize, threads: usize) -> Result<Vec<Candidate>> {
    let device = Device::cpu_with_threads(threads)?;
    let open = || Model::open(Path::new(model), &device);
    let (bare, adapted) = (open()?, open()?);
    let method = find("mixlora-cond")?.defaults();
    let targets = [ALL_LINEAR.to_string()];
    let adapter = Adapter::attach(&adapted, &method, &targets, Stream::new(2))?;
    for p in adapter.trainable() {
        let value = p.value();
        p.set(Tensor::from_f32(&device, value.dims(), &values(3, value.len(), 0.02))?)?;
    }
    let ids = tokens(1, prompt, bare.config().vocab_size);
    let candidate = |name, model: std::sync::Arc<Model>, adapter: Option<Adapter>| -> Result<Candidate> {
        let ids = ids.clone();
        let run = move || -> Result<([f64; 2], Vec<f32>)> {
            let mut c = Conversation::new(&model, adapter.as_ref(), 1);
            let (prompt, _) = timed(|| Ok(c.push(&ids)?))?;
            let mut sampler = Sampler::new(Sampling::default())?;
            let mut answer = Vec::with_capacity(generated);
            let (generate, ()) = timed(|| {
                for _ in 0..generated {
                    answer.push(sampler.next(c.logits(0)) as f32);
                    c.push(&[answer[answer.len() - 1] as u32])?;
                }
                Ok(())
            })?;
            Ok(([prompt, generate], answer))
        };
        Ok(Candidate::new(name, run()?.1, move || {
            let [prompt, generate] = run()?.0;
            Ok(vec![("prompt", prompt), ("generate", generate)])
        }))
    };
    Ok(vec![candidate("mixlora", bare, None)?, candidate("mixlora + adapter", adapted, Some(adapter))?])
}
