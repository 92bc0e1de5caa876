//! `mixlora generate`

use crate::{Failure, out};
use mixlora::adapter::Adapter;
use mixlora::mixture::Units;
use mixlora::model::{Generation, Llama, Sampler, Sampling, single_row};
use mixlora::nn::{Choices, Pass};
use mixlora::text::{Message, ModelText, Role};
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
#[command(after_help = "\
The text streams to stdout as it comes; speeds go to stderr. An adapter that routes per instance stays with what \
the prompt chose.

Example: mixlora generate --model SmolLM2-135M-Instruct.Q4_1.gguf --prompt 'Name a colour.'")]
pub struct Args {
    /// A .gguf file, or a Hugging Face directory.
    #[arg(long)]
    model: PathBuf,
    /// An adapter directory: one written by `train`, or a PEFT LoRA.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What to say to the model.
    #[arg(long)]
    prompt: String,
    /// A system message.
    #[arg(long)]
    system: Option<String>,
    /// Take the prompt as it is, without the chat template.
    #[arg(long)]
    raw: bool,
    /// Tokens at most.
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// 0 always takes the most likely token.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Only this many most likely tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Only the most likely tokens that add up to this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Stop before this text; may be given several times.
    #[arg(long)]
    stop: Vec<String>,
    /// cpu, gpu, auto, or part of an adapter's name.
    #[arg(long, default_value = "cpu")]
    device: String,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let sampling =
        Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    let mut sampler = Sampler::new(sampling)?;
    let device = crate::device(&args.device)?;
    let text = ModelText::open(&args.model)?;
    let mut model = Llama::open(&args.model, &device, false)?;
    text.tokenizer.check_rows(model.config().vocab_size)?;
    if let Some(dir) = &args.adapter {
        Adapter::load(dir, &mut model)?;
    }
    let prompt = match (args.raw, &text.template) {
        (false, Some(template)) => {
            let mut messages: Vec<Message> =
                args.system.iter().map(|s| Message::new(Role::System, s.clone())).collect();
            messages.push(Message::new(Role::User, args.prompt.clone()));
            text.tokenizer.render(template, &messages, true)?
        }
        _ => args.prompt.clone(),
    };
    let ids = text.tokenizer.encode(&prompt, true)?;
    let ends = text.tokenizer.end_tokens();

    let started = Instant::now();
    let units = Units::instances(&device, 1, ids.len())?;
    let choices = Choices::record();
    let mut g = Generation::prefill(&model, &ids, &Pass::new(units).with_choices(choices.clone()))?;
    let prefill = started.elapsed().as_secs_f64();
    let step = single_row(&device)?.with_choices(choices.freeze());
    let mut decoder = text.tokenizer.decoder(&ids, true);
    let mut printer = Printer { stops: &args.stop, held: String::new() };
    let started = Instant::now();
    let mut n = 0;
    while n < args.max_tokens && g.len() < model.config().max_position_embeddings {
        let token = sampler.next(g.logits());
        n += 1;
        if ends.contains(&token) || printer.push(decoder.push(token).as_deref().unwrap_or(""))? {
            break;
        }
        g.push(token, &step)?;
    }
    let rest = decoder.finish();
    printer.finish(rest.as_deref().unwrap_or(""))?;
    let seconds = started.elapsed().as_secs_f64();
    out::note(&format!(
        "prompt {} tokens in {prefill:.2} s ({:.0} tok/s), generated {n} in {seconds:.2} s ({:.1} tok/s) on {}",
        ids.len(),
        ids.len() as f64 / prefill,
        n as f64 / seconds.max(1e-9),
        device.name()
    ));
    Ok(())
}

/// Prints text as it comes, but holds back what may be the start of a stop text.
struct Printer<'a> {
    stops: &'a [String],
    held: String,
}

impl Printer<'_> {
    /// True when a stop text has come.
    fn push(&mut self, text: &str) -> Result<bool, Failure> {
        self.held += text;
        if let Some(at) = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s)).min()
        {
            self.held.truncate(at);
            return Ok(true);
        }
        let keep = self.stops.iter().map(|s| partial(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        print(&std::mem::replace(&mut self.held, rest))?;
        Ok(false)
    }

    fn finish(&mut self, text: &str) -> Result<(), Failure> {
        print(&std::mem::take(&mut self.held))?;
        print(text)?;
        print("\n")
    }
}

/// Bytes at the end of `text` that `stop` starts with.
fn partial(text: &str, stop: &str) -> usize {
    let ends = |n: &usize| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n]);
    (1..stop.len().max(1)).rev().find(ends).unwrap_or(0)
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
