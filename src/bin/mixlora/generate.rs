//! `mixlora generate`

use crate::model_args::{ModelArgs, SamplingArgs};
use crate::streaming::{Answer, print};
use crate::{Failure, out};
use mixlora::text::{Message, Role};
use std::time::Instant;

#[derive(clap::Args)]
#[command(after_help = "\
The text streams to stdout as it comes; speeds go to stderr. An adapter that routes per instance stays with what \
the prompt chose, unless --decode-route per_step is given.

Example: mixlora generate --model SmolLM2-135M-Instruct.Q4_1.gguf --prompt 'Name a colour.'")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What to say to the model.
    #[arg(long)]
    prompt: String,
    /// A system message.
    #[arg(long)]
    system: Option<String>,
    /// Take the prompt as it is, without the chat template.
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let mut sampler = args.sampling.sampler()?;
    let opened = args.model.open()?;
    let tokenizer = &opened.text.tokenizer;
    let prompt = match (args.raw, &opened.text.template) {
        (false, Some(template)) => {
            let mut messages: Vec<Message> =
                args.system.iter().map(|s| Message::new(Role::System, s.clone())).collect();
            messages.push(Message::new(Role::User, args.prompt.clone()));
            tokenizer.render(template, &messages, true)?
        }
        _ => args.prompt.clone(),
    };
    let mut ids = tokenizer.encode(&prompt, true)?;
    if let Some(bos) = tokenizer.bos().filter(|b| tokenizer.add_bos() && ids.first() != Some(b)) {
        ids.insert(0, bos);
    }
    let started = Instant::now();
    let mut conversation = opened.conversation();
    conversation.push(&ids)?;
    let prefill = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let answer = Answer { tokenizer, stops: &args.sampling.stop, max_tokens: args.sampling.max_tokens };
    let said = answer.stream(&mut conversation, &mut sampler, &|| true)?;
    print("\n")?;
    let (n, seconds) = (said.ids.len(), started.elapsed().as_secs_f64());
    out::note(&format!(
        "prompt {} tokens in {prefill:.2} s ({:.0} tok/s), generated {n} in {seconds:.2} s ({:.1} tok/s) on {}",
        ids.len(),
        ids.len() as f64 / prefill,
        n as f64 / seconds.max(1e-9),
        opened.model.device().name()
    ));
    Ok(())
}
