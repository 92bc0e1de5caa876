//! An answer as it comes: tokens are drawn one by one, and their text is given out up to one of its ends.

use super::{Decoder, Tokenizer};
use crate::Result;
use crate::adapter::Conversation;
use crate::model::Sampler;

/// Where an answer ends besides the vocabulary's end tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyOptions {
    pub max_tokens: usize,
    /// It ends before the first of these texts.
    pub stops: Vec<String>,
}

impl Default for ReplyOptions {
    fn default() -> Self {
        ReplyOptions { max_tokens: 256, stops: Vec::new() }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The model said so, with one of the vocabulary's end tokens.
    EndToken,
    /// One of the texts that it was to stop before.
    StopText,
    /// As many tokens as were allowed.
    MaxTokens,
    /// The model's context is full.
    Context,
    /// The caller asked for no more.
    Left,
}

/// What was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The answer, without what ended it.
    pub text: String,
    /// The end of `text` that the iterator has not given out: it might have become a stop text.
    pub rest: String,
    /// Tokens drawn, the end token included.
    pub tokens: usize,
    pub ending: Ending,
    /// Drawn, but not read by the model: nothing was drawn behind it.
    pub(super) unread: Option<u32>,
}

/// An answer in the making: an iterator over its text, in whole characters. What may become a stop text is held back
/// until it is clear.
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
    /// An answer to what a conversation of one row has read.
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

    /// One more token: the text that has become clear with it.
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
        Ok(self.clear())
    }

    /// Takes what cannot be part of a stop text any more.
    fn clear(&mut self) -> String {
        let stops = self.options.stops.iter().filter(|s| !s.is_empty());
        if let Some(at) = stops.clone().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            self.ending = Some(Ending::StopText);
        }
        let keep = match self.ending {
            Some(_) => 0,
            None => stops.map(|s| started(&self.held, s)).max().unwrap_or(0),
        };
        let rest = self.held.split_off(self.held.len() - keep);
        let text = std::mem::replace(&mut self.held, rest);
        self.given += &text;
        text
    }

    fn end(&mut self, ending: Ending) -> String {
        self.held += self.decoder.finish().as_deref().unwrap_or("");
        self.ending = Some(ending);
        self.clear()
    }

    /// What was said so far; the iterator need not have come to its end.
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

    /// The text that one more token made clear, which may be empty; none when the answer has ended.
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

/// Bytes at the end of `text` that `stop` starts with.
fn started(text: &str, stop: &str) -> usize {
    let ends = |n: &usize| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n]);
    (1..stop.len().max(1)).rev().find(ends).unwrap_or(0)
}
