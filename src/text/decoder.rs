//! Streaming decoding: text of tokens that arrive one by one.

use super::Tokenizer;

/// The number of context tokens that a [`Decoder`] keeps.
const WINDOW: usize = 6;
/// The largest number of tokens that wait for the rest of a character of four bytes.
const MAX_HELD: usize = 3;

impl Tokenizer {
    /// A decoder for tokens that follow a prompt one by one.
    pub fn decoder(&self, prompt: &[u32], skip_special: bool) -> Decoder<'_> {
        let ids = prompt[prompt.len().saturating_sub(WINDOW)..].to_vec();
        let shown = self.decode(&ids, skip_special).len();
        Decoder { tokenizer: self, skip_special, ids, shown, held: 0 }
    }
}

/// A streaming decoder that returns whole characters only.
pub struct Decoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    ids: Vec<u32>,
    /// The number of bytes of the window's text that have been returned.
    shown: usize,
    held: usize,
}

impl Decoder<'_> {
    /// Adds a token and returns the text that it completes, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, self.skip_special);
        let new = text.get(self.shown..).unwrap_or("");
        if new.ends_with(char::REPLACEMENT_CHARACTER) && self.held < MAX_HELD {
            self.held += 1;
            return None;
        }
        let new = (!new.is_empty()).then(|| new.to_string());
        self.settle();
        new
    }

    /// Returns the rest of the text; an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> Option<String> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special);
        let new = text.get(self.shown..).filter(|text| !text.is_empty()).map(String::from);
        self.settle();
        new
    }

    fn settle(&mut self) {
        self.held = 0;
        if self.ids.len() > 2 * WINDOW {
            self.ids.drain(..self.ids.len() - WINDOW);
        }
        self.shown = self.tokenizer.decode(&self.ids, self.skip_special).len();
    }
}
