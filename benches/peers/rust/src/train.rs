//! Training steps of a model with Conditional MixLoRA on all projections.

use crate::values::tokens;
use crate::{Candidate, Result, timed};
use mixlora::adapter::{Adapter, TARGETS};
use mixlora::data::{Batch, Example};
use mixlora::mixture::{MethodConfig, find};
use mixlora::model::Llama;
use mixlora::train::{Session, TrainConfig};
use mixlora::{Device, Stream};
use std::path::Path;

pub fn candidates(
    model: &str,
    [batch, seq]: [usize; 2],
    [num_factors, r]: [usize; 2],
    threads: usize,
) -> Result<Vec<Candidate>> {
    let device = Device::cpu_with_threads(threads)?;
    let mut model = Llama::open(Path::new(model), &device, true)?;
    let ids = tokens(1, batch * seq, model.config().vocab_size);
    let examples: Vec<Example> =
        ids.chunks(seq).map(|ids| Example::new(ids.to_vec(), vec![true; seq])).collect();
    let config = MethodConfig { num_factors, r, ..MethodConfig::default() };
    let batches = [Batch::new(&examples.iter().collect::<Vec<_>>(), config.pool, 0, &device)?];
    let method = find("mixlora-cond")?;
    let adapter = Adapter::attach(&mut model, method, &config, &TARGETS.map(String::from), Stream::new(2))?;
    let mut session = Session::new(model, adapter, TrainConfig { steps: 10_000, ..TrainConfig::default() })?;
    // The first step: B is zero, so its loss is that of the model.
    let first = session.step(&batches)?.loss;
    Ok(vec![Candidate::new("mixlora", vec![first as f32], move || {
        let (step, report) = timed(|| Ok(session.step(&batches)?))?;
        Ok(vec![("step", step), ("loss", report.loss)])
    })])
}
