//! Training steps of a model with Conditional MixLoRA on all projections.

use crate::values::tokens;
use crate::{Candidate, Result, timed};
use mixlora::adapter::{ALL_LINEAR, Adapter};
use mixlora::data::{Batch, Example};
use mixlora::mixture::find;
use mixlora::model::Model;
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
    let model = Model::open_f32(Path::new(model), &device)?;
    let ids = tokens(1, batch * seq, model.config().vocab_size);
    let examples: Vec<Example> =
        ids.chunks(seq).map(|ids| Example::new(ids.to_vec(), vec![true; seq])).collect();
    let method = find("mixlora-cond")?.defaults().with("num_factors", num_factors)?.with("r", r)?;
    let pool = method.options().instance().map(|instance| instance.pool);
    let batches = [Batch::new(&examples.iter().collect::<Vec<_>>(), pool, 0, &device)?];
    let adapter = Adapter::attach(&model, &method, &[ALL_LINEAR.into()], Stream::new(2))?;
    let mut session = Session::new(model, adapter, TrainConfig { steps: 10_000, ..TrainConfig::default() })?;
    // The first step: B is zero, so its loss is that of the model.
    let first = session.step(&batches)?.loss;
    Ok(vec![Candidate::new("mixlora", vec![first as f32], move || {
        let (step, report) = timed(|| Ok(session.step(&batches)?))?;
        Ok(vec![("step", step), ("loss", report.loss)])
    })])
}
