//! Speed of a model on a prompt and in generation.

use super::kernels::kernels;
use super::layer::randomise;
use super::{Candidate, Place, Rounds, Row, Timer, Watch, Work, measure};
use crate::adapter::{ALL_LINEAR, Adapter, Conversation};
use crate::mixture::Method;
use crate::model::{Model, Sampler, Sampling};
use crate::{Error, Result, Stream};
use std::sync::Arc;

/// What is timed of a model.
pub struct ModelOptions {
    /// Lengths of prompts.
    pub prompts: Vec<usize>,
    /// Numbers of generated tokens.
    pub generated: Vec<usize>,
    pub rounds: usize,
    /// Add a row for each kernel of the last prompt, and of one token behind it, on GPUs with timestamps.
    pub kernels: bool,
}

/// Puts a method on all projections of a model, with values in place of the zeros it starts from.
pub(super) fn attach(model: &Model, method: &Method) -> Result<Adapter> {
    let adapter = Adapter::attach(model, method, &[ALL_LINEAR.into()], Stream::new(2))?;
    randomise(&adapter.params())?;
    Ok(adapter)
}

/// Tokens that are always the same, all over the vocabulary.
pub(super) fn tokens(n: usize, vocab: usize) -> Vec<u32> {
    let stream = Stream::new(7).named("tokens");
    (0..n as u32).map(|i| stream.bits(i) % vocab.max(1) as u32).collect()
}

/// Format of a model's weights: that of its first linear.
pub(super) fn format_of(model: &Model) -> &'static str {
    model.linears().next().map_or("f32", |(_, l)| l.weight.format().name())
}

/// Rows `pp<n>` (a prompt of n tokens at once) and `tg<n>` (n tokens one by one behind a single one), interleaved.
///
/// # Errors
/// The model's context is shorter than asked for, or the device failed.
pub fn model(
    model: &Arc<Model>,
    method: Option<&Method>,
    adapter: Option<Adapter>,
    options: &ModelOptions,
) -> Result<Vec<Row>> {
    let dtype = format_of(model);
    let adapter = match (adapter, method) {
        (Some(a), _) => Some(a),
        (None, Some(method)) => Some(attach(model, method)?),
        (None, None) => None,
    };
    let device = model.device();
    let most = model.config().max_positions();
    let behind = usize::from(options.kernels);
    let prompts = options.prompts.iter().map(|n| n + behind);
    let longest = prompts.chain(options.generated.iter().map(|n| n + 1)).max();
    if let Some(n) = longest.filter(|&n| n > most) {
        return Err(Error::Context { used: 0, more: n, most });
    }
    let ids = tokens(most.min(longest.unwrap_or(1)), model.config().vocab_size);
    let conversation = || Conversation::new(model, adapter.as_ref(), None, 1);
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    for &n in &options.prompts {
        let ids = &ids;
        candidates.push(Box::new(move |w: &mut Watch| {
            let mut c = conversation();
            w.time(|| c.push(&ids[..n]))
        }));
    }
    for &n in &options.generated {
        let ids = &ids;
        candidates.push(Box::new(move |w: &mut Watch| {
            let (mut c, mut sampler) = (conversation(), Sampler::new(Sampling::default())?);
            c.push(&ids[..1])?;
            w.time(|| (0..n).try_for_each(|_| c.push(&[sampler.next(c.logits(0))])))
        }));
    }
    // Every token is read back: kernels alone are not what a user waits for.
    let timer = Timer::of(device, true)?;
    let samples = measure(device, timer, Rounds::single(options.rounds), &mut candidates)?;
    let names = options.prompts.iter().map(|n| (format!("pp{n}"), *n));
    let names = names.chain(options.generated.iter().map(|n| (format!("tg{n}"), *n)));
    let place = Place::of(device);
    let work = Work {
        bench: "model".into(),
        variant: adapter.as_ref().map_or(String::new(), |a| a.method().name().into()),
        shape: model.origin().file_name().map_or(String::new(), |f| f.to_string_lossy().into_owned()),
        dtype: dtype.into(),
        ..Work::default()
    };
    let rows = names.zip(&samples).map(|((op, n), samples)| {
        let row = Row::new(&place, Work { op, ..work.clone() }, timer, samples);
        Row { tok_s: Some(n as f64 / (row.median_us * 1e-6)), ..row }
    });
    let mut rows: Vec<Row> = rows.collect();
    if options.kernels
        && let Some(&n) = options.prompts.last()
    {
        let mut c = conversation();
        let push = |variant: String, c: &mut Conversation, ids: &[u32]| {
            kernels(device, &Work { variant, ..work.clone() }, || c.push(ids))
        };
        rows.extend(push(format!("{} pp{n}", work.variant), &mut c, &ids[..n])?);
        rows.extend(push(format!("{} tg1", work.variant), &mut c, &ids[..1])?);
    }
    Ok(rows)
}
