//! An answer as it comes: tokens to text, on stdout, up to an end token or a stop text.

use crate::Failure;
use mixlora::adapter::Conversation;
use mixlora::model::Sampler;
use mixlora::text::Tokenizer;
use std::io::Write;

/// What is generated, and when it ends.
pub struct Answer<'a> {
    pub tokenizer: &'a Tokenizer,
    pub stops: &'a [String],
    pub max_tokens: usize,
}

/// How an answer came out.
pub struct Said {
    /// Tokens, the end token not among them.
    pub ids: Vec<u32>,
    /// What was printed.
    pub text: String,
    /// Why it ended.
    pub end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// An end token or a stop text.
    Stop,
    /// As many tokens as were allowed.
    Length,
    /// The model's context is full.
    Context,
    /// The caller stopped it.
    Stopped,
}

impl Answer<'_> {
    /// Prints the answer to what the conversation holds. Every token but the end token is pushed into it.
    pub fn stream(
        &self,
        conversation: &mut Conversation<'_>,
        sampler: &mut Sampler,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Said, Failure> {
        let ends = self.tokenizer.end_tokens();
        let mut decoder = self.tokenizer.decoder(&[], true);
        let mut printer = Printer { stops: self.stops, held: String::new(), printed: String::new() };
        let mut ids = Vec::new();
        let end = loop {
            if ids.len() >= self.max_tokens {
                break End::Length;
            }
            if !go_on() {
                break End::Stopped;
            }
            let token = sampler.next(conversation.logits(0));
            if ends.contains(&token) {
                break End::Stop;
            }
            if conversation.room() == 0 {
                break End::Context;
            }
            ids.push(token);
            conversation.push(&[token])?;
            if printer.push(decoder.push(token).as_deref().unwrap_or(""))? {
                return Ok(Said { ids, text: printer.printed, end: End::Stop });
            }
        };
        let rest = decoder.finish();
        printer.push(rest.as_deref().unwrap_or(""))?;
        printer.finish()?;
        Ok(Said { ids, text: printer.printed, end })
    }
}

/// Prints text as it comes, but holds back what may be the start of a stop text.
struct Printer<'a> {
    stops: &'a [String],
    held: String,
    printed: String,
}

impl Printer<'_> {
    /// True when a stop text has come; what is before it is printed.
    fn push(&mut self, text: &str) -> Result<bool, Failure> {
        self.held += text;
        if let Some(at) = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s)).min()
        {
            self.held.truncate(at);
            self.finish()?;
            return Ok(true);
        }
        let keep = self.stops.iter().map(|s| partial(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        let now = std::mem::replace(&mut self.held, rest);
        self.print(&now)?;
        Ok(false)
    }

    fn finish(&mut self) -> Result<(), Failure> {
        let rest = std::mem::take(&mut self.held);
        self.print(&rest)
    }

    fn print(&mut self, text: &str) -> Result<(), Failure> {
        self.printed += text;
        print(text)
    }
}

/// Bytes at the end of `text` that `stop` starts with.
fn partial(text: &str, stop: &str) -> usize {
    let ends = |n: &usize| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n]);
    (1..stop.len().max(1)).rev().find(ends).unwrap_or(0)
}

pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
