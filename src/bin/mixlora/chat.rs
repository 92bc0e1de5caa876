//! `mixlora chat`

use crate::model_args::{About, ModelArgs, Opened, PictureArgs, SamplingArgs, open_picture};
use crate::{Failure, out, signals};
use mixlora::Error;
use mixlora::model::Sampler;
use mixlora::text::{Chat, Ending, ReplyOptions, Seen, Sight};
use std::io::{BufRead, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

#[derive(clap::Args)]
#[command(after_help = "\
Each line is a turn; standard input may be a file. The model remembers the conversation: only what is new is run. An \
adapter that routes per instance stays with what the first turn chose until /reset.

/help lists the commands. /image FILE shows a picture with the next message, /reset starts anew, /system TEXT also sets the system message, /exit or Ctrl-D ends. Ctrl-C stops an answer.

Example: mixlora chat --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter run")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A system message.
    #[arg(long, allow_hyphen_values = true)]
    system: Option<String>,
    #[command(flatten)]
    pictures: PictureArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// The dialogue of a user with the model.
struct Dialogue<'a> {
    opened: &'a Opened,
    system: Option<String>,
    about: About,
    /// The vision part of the model, once a picture was shown.
    sight: Option<Arc<Sight>>,
    /// Pictures of the next message.
    pictures: Vec<Seen>,
    chat: Chat,
    sampler: Sampler,
    options: ReplyOptions,
    /// The user has been told that the conversation is read again.
    told: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let (sampler, options) = args.sampling.open()?;
    let opened = args.model.open()?;
    let about = opened.about(&args.sampling)?;
    if opened.text.template.is_none() {
        let what = "has no chat template; give one, for example --template chatml".to_string();
        return Err(mixlora::Error::File { path: args.model.model.clone(), what }.into());
    }
    let chat = Chat::new(&opened.text, opened.conversation(&about)?, None);
    let shown = args.pictures.open(&opened)?;
    let (sight, pictures) = shown.map(|shown| (shown.sight, shown.pictures)).unzip();
    let mut dialogue = Dialogue {
        opened: &opened,
        system: args.system.clone(),
        about,
        sight,
        pictures: pictures.unwrap_or_default(),
        chat,
        sampler,
        options,
        told: false,
    };
    dialogue.reset()?;
    let interrupted = signals::Interrupt::new()?;
    let person = std::io::stdin().is_terminal();
    if person {
        out::note("Say something; /help lists the commands.");
    }
    loop {
        if person {
            out::prompt("> ");
        }
        let mut line = String::new();
        let read = interrupted.while_waiting(|| std::io::stdin().lock().read_line(&mut line));
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                let what = format!("cannot be read: {error}");
                return Err(mixlora::Error::File { path: "standard input".into(), what }.into());
            }
        }
        let (command, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        match command {
            "" => {}
            "/exit" | "/quit" => return Ok(()),
            "/help" => {
                out::note("/image FILE, /reset, /system TEXT, /exit; anything else is said to the model")
            }
            "/reset" => dialogue.reset()?,
            "/system" => {
                dialogue.system = Some(rest.trim().to_string()).filter(|text| !text.is_empty());
                dialogue.reset()?;
            }
            "/image" => dialogue.show(rest.trim())?,
            word if word.starts_with('/') => out::note(&format!("there is no command {word}; see /help")),
            _ => dialogue.turn(line.trim(), interrupted.flag())?,
        }
    }
}

impl Dialogue<'_> {
    /// Starts anew with the same system message.
    fn reset(&mut self) -> Result<(), Failure> {
        let conversation = self.opened.conversation(&self.about)?;
        self.chat = Chat::new(&self.opened.text, conversation, self.system.as_deref());
        if let Some(sight) = &self.sight {
            self.chat.show_with(sight.clone());
        }
        Ok(())
    }

    /// Puts a picture before the next message.
    fn show(&mut self, image: &str) -> Result<(), Failure> {
        let sight = match &self.sight {
            Some(sight) => sight.clone(),
            None => match self.opened.sight() {
                Ok(sight) => sight,
                Err(error) => {
                    out::note(&error.to_string());
                    return Ok(());
                }
            },
        };
        self.chat.show_with(sight.clone());
        match open_picture(&sight, Path::new(image)) {
            Ok(seen) => self.pictures.push(seen),
            Err(error) => out::note(&error.to_string()),
        }
        self.sight = Some(sight);
        Ok(())
    }

    /// One turn: a message of the user and the answer.
    fn turn(&mut self, user: &str, stop: &AtomicBool) -> Result<(), Failure> {
        stop.store(false, Relaxed);
        match self.chat.ask_about(&mut self.pictures, user) {
            Ok(turn) if turn.again && !self.told => {
                let why =
                    "the template writes past turns in another way, or an answer was cut at a stop text";
                out::note(&format!("note: the conversation is read again where {why}"));
                self.told = true;
            }
            Ok(_) => {}
            // The user may rephrase a message that is too long or that the template refuses.
            Err(error @ Error::Context { .. }) => {
                out::note(&format!("{error}: /reset does that"));
                return Ok(());
            }
            Err(error @ (Error::Config { .. } | Error::Refused { .. })) => {
                out::note(&error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        let mut reply = self.chat.reply(&mut self.sampler, &self.options);
        while !stop.load(Relaxed)
            && let Some(piece) = reply.next()
        {
            out::stream(&piece?)?;
        }
        let said = reply.finish();
        out::stream(&format!("{}\n", said.rest))?;
        match said.ending {
            Ending::MaxTokens => out::note(&format!("(cut at --max-tokens {})", self.options.max_tokens)),
            Ending::Context => out::note("(the context is full; /reset starts anew)"),
            Ending::EndToken | Ending::StopText | Ending::Left => {}
        }
        self.chat.keep(&said);
        Ok(())
    }
}
