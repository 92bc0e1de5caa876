//! `mixlora chat`

use crate::model_args::{ModelArgs, Opened, SamplingArgs};
use crate::streaming::{Answer, End, print};
use crate::{Failure, out, signals};
use mixlora::adapter::Conversation;
use mixlora::model::Sampler;
use mixlora::text::{ChatTemplate, Message, Role};
use std::io::{BufRead, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

#[derive(clap::Args)]
#[command(after_help = "\
Each line is a turn; standard input may be a file. The model remembers the conversation: only what is new is run. An \
adapter that routes per instance stays with what the first turn chose until /reset.

/reset starts anew, /system TEXT also sets the system message, /exit or Ctrl-D ends. Ctrl-C stops an answer.

Example: mixlora chat --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter run")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A system message.
    #[arg(long)]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// A conversation with what was said.
struct Chat<'a> {
    opened: &'a Opened,
    template: &'a ChatTemplate,
    args: &'a Args,
    conversation: Conversation<'a>,
    messages: Vec<Message>,
    /// The text of the tokens that the conversation holds.
    held: String,
    sampler: Sampler,
    warned: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let sampler = args.sampling.sampler()?;
    let opened = args.model.open()?;
    let Some(template) = &opened.text.template else {
        let what = "has no chat template; give one, for example --template chatml".to_string();
        return Err(mixlora::Error::File { path: args.model.model.clone(), what }.into());
    };
    let system = args.system.iter().map(|s| Message::new(Role::System, s.clone())).collect();
    let mut chat = Chat {
        opened: &opened,
        template,
        args,
        conversation: opened.conversation(),
        messages: system,
        held: String::new(),
        sampler,
        warned: false,
    };
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
            Err(e) => {
                let what = format!("cannot be read: {e}");
                return Err(mixlora::Error::File { path: "standard input".into(), what }.into());
            }
        }
        let (command, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        match command {
            "" => {}
            "/exit" | "/quit" => return Ok(()),
            "/help" => out::note("/reset, /system TEXT, /exit; anything else is said to the model"),
            "/reset" => chat.reset(None),
            "/system" => chat.reset(Some(rest.trim())),
            word if word.starts_with('/') => out::note(&format!("there is no command {word}; see /help")),
            _ => chat.turn(line.trim(), interrupted.flag())?,
        }
    }
}

impl Chat<'_> {
    /// Forgets all but the system message, or sets another one.
    fn reset(&mut self, system: Option<&str>) {
        self.messages.retain(|m| m.role == Role::System && system.is_none());
        self.messages.extend(system.map(|s| Message::new(Role::System, s)));
        self.conversation = self.opened.conversation();
        self.held.clear();
    }

    /// One turn: what the user says, and the answer.
    fn turn(&mut self, said: &str, stop: &AtomicBool) -> Result<(), Failure> {
        let tokenizer = &self.opened.text.tokenizer;
        self.messages.push(Message::new(Role::User, said));
        let text = tokenizer.render(self.template, &self.messages, true)?;
        if !text.starts_with(&self.held) {
            if !self.warned {
                out::note(
                    "note: the template writes past turns in another way: the conversation is run again",
                );
                self.warned = true;
            }
            self.conversation = self.opened.conversation();
            self.held.clear();
        }
        let mut ids = tokenizer.encode(&text[self.held.len()..], true)?;
        let start = tokenizer.bos().filter(|b| tokenizer.add_bos() && ids.first() != Some(b));
        if let Some(bos) = start.filter(|_| self.held.is_empty()) {
            ids.insert(0, bos);
        }
        if ids.len() >= self.conversation.room() {
            self.messages.pop();
            let (room, n) = (self.conversation.room(), ids.len());
            out::note(&format!("the context is full: {n} new tokens, room for {room}; /reset starts anew"));
            return Ok(());
        }
        self.conversation.push(&ids)?;
        stop.store(false, Relaxed);
        let sampling = &self.args.sampling;
        let answer = Answer { tokenizer, stops: &sampling.stop, max_tokens: sampling.max_tokens };
        let said = answer.stream(&mut self.conversation, &mut self.sampler, &|| !stop.load(Relaxed))?;
        print("\n")?;
        match said.end {
            End::Length => out::note(&format!("(cut at --max-tokens {})", sampling.max_tokens)),
            End::Context => out::note("(the context is full; /reset starts anew)"),
            End::Stop | End::Stopped => {}
        }
        self.held = text + &tokenizer.decode(&said.ids, false);
        self.messages.push(Message::new(Role::Assistant, said.text));
        Ok(())
    }
}
