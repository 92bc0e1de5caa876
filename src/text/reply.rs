//! Streaming answers: tokens are drawn one by one, and their text is returned up to the end of the answer.

use super::{Decoder, Tokenizer};
use crate::Result;
use crate::adapter::Conversation;
use crate::model::Sampler;

/// The ends of an answer besides the vocabulary's end tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyOptions {
    /// The largest number of tokens.
    pub max_tokens: usize,
    /// The answer ends before the first of these texts.
    pub stops: Vec<String>,
}

impl Default for ReplyOptions {
    fn default() -> Self {
        ReplyOptions { max_tokens: 256, stops: Vec::new() }
    }
}

/// The reason for the end of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The model produced an end token of the vocabulary.
    EndToken,
    /// The answer reached one of the stop texts.
    StopText,
    /// The answer reached the largest number of tokens.
    MaxTokens,
    /// The model's context is full.
    Context,
    /// The caller left the answer unfinished.
    Left,
}

/// A finished answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The answer, without the end token or stop text.
    pub text: String,
    /// The end of `text` that the iterator has not returned, because it might have become a stop text.
    pub rest: String,
    /// The number of drawn tokens, including the end token.
    pub tokens: usize,
    pub ending: Ending,
    /// The last drawn token, if the model has not read it.
    pub(super) unread: Option<u32>,
}

/// A streaming answer: an iterator over its text in whole characters. Text that may become a stop text is held back
/// until that is decided.
pub struct Reply<'a> {
    conversation: &'a mut Conversation,
    sampler: &'a mut Sampler,
    options: &'a ReplyOptions,
    decoder: Decoder<'a>,
    ends: Vec<u32>,
    given: String,
    held: String,
    tokens: usize,
    unread: Option<u32>,
    ending: Option<Ending>,
}

impl<'a> Reply<'a> {
    /// Starts the answer to a conversation of one row.
    pub fn new(
        conversation: &'a mut Conversation,
        sampler: &'a mut Sampler,
        tokenizer: &'a Tokenizer,
        options: &'a ReplyOptions,
    ) -> Self {
        Reply {
            conversation,
            sampler,
            options,
            decoder: tokenizer.decoder(&[], true),
            ends: tokenizer.end_tokens(),
            given: String::new(),
            held: String::new(),
            tokens: 0,
            unread: None,
            ending: None,
        }
    }

    /// Draws one more token and returns the text that it completes.
    fn step(&mut self) -> Result<String> {
        if self.tokens == self.options.max_tokens {
            return Ok(self.end(Ending::MaxTokens));
        }
        if let Some(token) = self.unread {
            if self.conversation.room() == 0 {
                return Ok(self.end(Ending::Context));
            }
            self.conversation.push(&[token])?;
            self.unread = None;
        }
        let token = self.sampler.next(self.conversation.logits(0));
        self.tokens += 1;
        if self.ends.contains(&token) {
            return Ok(self.end(Ending::EndToken));
        }
        self.unread = Some(token);
        self.held += self.decoder.push(token).as_deref().unwrap_or("");
        Ok(self.release())
    }

    /// Returns the held text that cannot be part of a stop text any more.
    fn release(&mut self) -> String {
        let stops = self.options.stops.iter().filter(|stop| !stop.is_empty());
        if let Some(at) = stops.clone().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            self.ending = Some(Ending::StopText);
        }
        let keep = match self.ending {
            Some(_) => 0,
            None => stops.map(|stop| begun(&self.held, stop)).max().unwrap_or(0),
        };
        let rest = self.held.split_off(self.held.len() - keep);
        let text = std::mem::replace(&mut self.held, rest);
        self.given += &text;
        text
    }

    fn end(&mut self, ending: Ending) -> String {
        self.held += self.decoder.finish().as_deref().unwrap_or("");
        self.ending = Some(ending);
        self.release()
    }

    /// Returns the answer; the iterator need not be exhausted.
    pub fn finish(mut self) -> Said {
        let rest = match self.ending {
            Some(_) => String::new(),
            None => self.end(Ending::Left),
        };
        let ending = self.ending.unwrap_or(Ending::Left);
        Said { text: self.given, rest, tokens: self.tokens, ending, unread: self.unread }
    }
}

impl Iterator for Reply<'_> {
    type Item = Result<String>;

    /// Draws a token and returns the text that it completes, which may be empty; none after the end of the answer.
    fn next(&mut self) -> Option<Result<String>> {
        if self.ending.is_some() {
            return None;
        }
        let step = self.step();
        if step.is_err() {
            self.ending = Some(Ending::Left);
        }
        Some(step)
    }
}

/// The number of bytes at the end of `text` that are the start of `stop`.
fn begun(text: &str, stop: &str) -> usize {
    let ends = |bytes: &usize| stop.is_char_boundary(*bytes) && text.ends_with(&stop[..*bytes]);
    (1..stop.len().max(1)).rev().find(ends).unwrap_or(0)
}
