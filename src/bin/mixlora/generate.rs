//! `mixlora generate`

use crate::model_args::{ModelArgs, PictureArgs, SamplingArgs, Shown};
use crate::{Failure, out};
use mixlora::text::{Ending, Message, Reply, Role, without_pictures};
use std::time::Instant;

#[derive(clap::Args)]
#[command(after_help = "\
The text streams to stdout as it comes; speeds go to stderr. A model without a chat template takes the prompt as with \
--raw. An adapter that routes per instance stays with what \
the prompt chose, unless --decode-route per_step is given.

Pictures stand before the prompt; with --raw each stands where the prompt has <image>.

Example: mixlora generate --model SmolLM2-135M-Instruct.Q4_1.gguf 'Name a colour.'
Example: mixlora generate --model SmolVLM-256M-Instruct --image cat.jpg 'What is it?'")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What to say to the model; - reads it from standard input.
    #[arg(required_unless_present = "prompt")]
    text: Option<String>,
    /// The same, also where it begins with a dash.
    #[arg(long, allow_hyphen_values = true, conflicts_with = "text")]
    prompt: Option<String>,
    /// A system message.
    #[arg(long, allow_hyphen_values = true, conflicts_with = "raw")]
    system: Option<String>,
    /// Take the prompt as it is, without the chat template.
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    pictures: PictureArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

impl Args {
    fn prompt(&self) -> Result<String, Failure> {
        match self.prompt.as_deref().or(self.text.as_deref()) {
            Some("-") | None => std::io::read_to_string(std::io::stdin()).map_err(|error| {
                let what = format!("cannot be read: {error}");
                mixlora::Error::File { path: "standard input".into(), what }.into()
            }),
            Some(text) => Ok(text.into()),
        }
    }
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let (mut sampler, options) = args.sampling.open()?;
    let prompt = args.prompt()?;
    let opened = args.model.open()?;
    let about = opened.about(&args.sampling)?;
    let shown = args.pictures.open(&opened)?;
    let expand = |prompt: String| match &shown {
        Some(Shown { sight, pictures }) => sight.expand(&prompt, pictures),
        None => without_pictures(prompt, &opened.text.tokenizer),
    };
    let tokenizer = &opened.text.tokenizer;
    let plain = args.raw || (opened.text.template.is_none() && args.system.is_none());
    let ids = if plain {
        tokenizer.encode_start(&expand(prompt)?)?
    } else {
        let system = args.system.iter().map(|text| Message::new(Role::System, text.clone()));
        let mut messages: Vec<Message> = system.collect();
        let count = shown.as_ref().map_or(0, |shown| shown.pictures.len());
        messages.push(Message::with_pictures(Role::User, count, &prompt));
        tokenizer.encode(&expand(opened.text.prompt(&messages)?)?, true)?
    };
    let started = Instant::now();
    let mut conversation = opened.conversation(&about)?;
    let features = |shown: &Shown| shown.sight.features(&ids, &shown.pictures);
    let seen = shown.as_ref().map(features).transpose()?;
    match seen.flatten() {
        Some(pictures) => conversation.push_with_pictures(&ids, &pictures)?,
        None => conversation.push(&ids)?,
    }
    let prefill = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let mut reply = Reply::new(&mut conversation, &mut sampler, tokenizer, &options);
    for piece in reply.by_ref() {
        out::stream(&piece?)?;
    }
    let said = reply.finish();
    out::stream("\n")?;
    let seconds = started.elapsed().as_secs_f64();
    let cut = match said.ending {
        Ending::MaxTokens => "; cut off by --max-tokens",
        Ending::Context => "; cut off: the model's context is full",
        Ending::EndToken | Ending::StopText | Ending::Left => "",
    };
    out::note(&format!(
        "prompt {} tokens in {prefill:.2} s ({:.0} tok/s), generated {} in {seconds:.2} s ({:.1} tok/s) on {}{cut}",
        ids.len(),
        ids.len() as f64 / prefill.max(1e-9),
        said.tokens,
        said.tokens as f64 / seconds.max(1e-9),
        opened.model.device().name()
    ));
    Ok(())
}
