//! Speed of a model on a prompt and in generation.

use super::kernels::kernels;
use super::layer::randomise;
use super::{Candidate, Pictured, Place, Rounds, Row, Timer, Watch, Work, measure};
use crate::adapter::{ALL_LINEAR, Adapter, Conversation};
use crate::mixture::Method;
use crate::model::vision::PictureFeatures;
use crate::model::{Model, Sampler, Sampling};
use crate::{Error, Result, Stream};
use std::sync::Arc;

/// Options for timing a model.
pub struct ModelOptions {
    /// Lengths of prompts.
    pub prompts: Vec<usize>,
    /// Numbers of generated tokens.
    pub generated: Vec<usize>,
    pub rounds: usize,
    /// Add a row for each kernel of the last prompt, and of one token after it, on GPUs with timestamps.
    pub kernels: bool,
    /// Also a picture: its preparation, the tower, and the prompts behind it.
    pub pictured: Option<Pictured>,
}

/// Attaches a method to all projections of a model, with random values instead of initial zeros.
pub(super) fn attach(model: &Model, method: &Method) -> Result<Adapter> {
    let adapter = Adapter::attach(model, method, &[ALL_LINEAR.into()], Stream::new(2))?;
    randomise(&adapter.params())?;
    Ok(adapter)
}

/// Fixed tokens from the whole vocabulary.
pub(super) fn tokens(count: usize, vocab: usize) -> Vec<u32> {
    let stream = Stream::new(7).named("tokens");
    (0..count as u32).map(|index| stream.bits(index) % vocab.max(1) as u32).collect()
}

/// The format of a model's first linear.
pub(super) fn format_of(model: &Model) -> &'static str {
    model.linears().next().map_or("f32", |(_, linear)| linear.weight.format().name())
}

/// Times `pp<n>` (a prompt of n tokens at once) and `tg<n>` (n tokens one by one after a single one), interleaved. With a
/// picture also `picture`, from its file to what the tower reads, `tower`, and `picture+pp<n>`: tower, projector, and the
/// picture's rows with n tokens behind them at once.
///
/// # Errors
/// The model's context is shorter than asked for, or the device failed.
pub fn model(
    model: &Arc<Model>,
    method: Option<&Method>,
    adapter: Option<Adapter>,
    options: &ModelOptions,
) -> Result<Vec<Row>> {
    let adapter = match (adapter, method) {
        (Some(adapter), _) => Some(adapter),
        (None, Some(method)) => Some(attach(model, method)?),
        (None, None) => None,
    };
    let device = model.device();
    let ids = enough_tokens(model, options)?;
    let conversation = || Conversation::new(model, adapter.as_ref(), 1);
    let work = Work {
        bench: "model".into(),
        variant: adapter.as_ref().map_or(String::new(), |adapter| adapter.method().name().into()),
        shape: model.origin().file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned()),
        dtype: format_of(model).into(),
        ..Work::default()
    };
    // Every token is read back: the time of the kernels alone is not what a user waits for.
    let timer = Timer::of(device, true)?;
    let rounds = Rounds::single(options.rounds);
    let mut all = candidates(options, &ids, &conversation);
    let mut names: Vec<(String, usize)> = Vec::new();
    names.extend(options.prompts.iter().map(|count| (format!("pp{count}"), *count)));
    names.extend(options.generated.iter().map(|count| (format!("tg{count}"), *count)));
    if let Some(pictured) = &options.pictured {
        for (name, count, run) in with_picture(options, pictured, &ids, &conversation) {
            names.push((name, count));
            all.push(run);
        }
    }
    let samples = measure(device, timer, rounds, &mut all)?;
    drop(all);
    let place = Place::of(device);
    let rows = names.into_iter().zip(&samples).map(|((op, count), samples)| {
        let work = Work { op, ..work.clone() };
        match &options.pictured {
            Some(pictured) if work.op == "tower" => pictured.row(&place, work, timer, samples),
            _ => {
                let row = Row::new(&place, work, timer, samples);
                Row { tok_s: (count > 0).then(|| count as f64 / (row.median_us * 1e-6)), ..row }
            }
        }
    });
    let mut rows: Vec<Row> = rows.collect();
    if options.kernels
        && let Some(&count) = options.prompts.last()
    {
        let mut conversation = conversation();
        let push = |variant: String, conversation: &mut Conversation, ids: &[u32]| {
            kernels(device, &Work { variant, ..work.clone() }, || conversation.push(ids))
        };
        rows.extend(push(format!("{} pp{count}", work.variant), &mut conversation, &ids[..count])?);
        rows.extend(push(format!("{} tg1", work.variant), &mut conversation, &ids[..1])?);
    }
    Ok(rows)
}

/// Tokens for the longest candidate, which must fit into the model's context.
fn enough_tokens(model: &Model, options: &ModelOptions) -> Result<Vec<u32>> {
    let most = model.config().max_positions();
    let after = usize::from(options.kernels);
    let shown = options.pictured.as_ref().map_or(0, Pictured::rows);
    let prompts = options.prompts.iter().map(|count| count + after.max(shown));
    let longest = prompts.chain(options.generated.iter().map(|count| count + 1)).max();
    if let Some(more) = longest.filter(|&count| count > most) {
        return Err(Error::Context { used: 0, more, most });
    }
    Ok(tokens(most.min(longest.unwrap_or(1)), model.config().vocab_size))
}

fn candidates<'a>(
    options: &ModelOptions,
    ids: &'a [u32],
    conversation: &'a dyn Fn() -> Conversation,
) -> Vec<Candidate<'a>> {
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    for &count in &options.prompts {
        candidates.push(Box::new(move |watch: &mut Watch| {
            let mut conversation = conversation();
            watch.time(|| conversation.push(&ids[..count]))
        }));
    }
    for &count in &options.generated {
        candidates.push(Box::new(move |watch: &mut Watch| {
            let mut conversation = conversation();
            let mut sampler = Sampler::new(Sampling::default())?;
            conversation.push(&ids[..1])?;
            watch.time(|| {
                (0..count).try_for_each(|_| conversation.push(&[sampler.next(conversation.logits(0))]))
            })
        }));
    }
    candidates
}

/// What a picture in front of prompts adds, with names and numbers of tokens.
fn with_picture<'a>(
    options: &'a ModelOptions,
    pictured: &'a Pictured,
    ids: &'a [u32],
    conversation: &'a dyn Fn() -> Conversation,
) -> Vec<(String, usize, Candidate<'a>)> {
    let mut all: Vec<(String, usize, Candidate<'a>)> = Vec::new();
    if let Some(prepare) = &pictured.prepare {
        all.push(("picture".into(), 0, Box::new(move |watch: &mut Watch| watch.time(prepare))));
    }
    let look = move |watch: &mut Watch| watch.time(|| pictured.features().map(drop));
    all.push(("tower".into(), 0, Box::new(look)));
    let token = pictured.vision.config().image_token;
    for &count in &options.prompts {
        let text = ids[..count].iter().map(|&id| if id == token { 0 } else { id });
        let prompt: Vec<u32> = std::iter::repeat_n(token, pictured.rows()).chain(text).collect();
        let length = prompt.len();
        let run = move |watch: &mut Watch| {
            let mut conversation = conversation();
            watch.time(|| {
                let vision = pictured.vision.clone();
                let pictures = PictureFeatures { vision, features: pictured.features()? };
                conversation.push_with_pictures(&prompt, &pictures)
            })
        };
        all.push((format!("picture+pp{count}"), length, Box::new(run)));
    }
    all
}
