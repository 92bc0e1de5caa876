//! Text of tokens that come one by one.

use super::Tokenizer;

/// Tokens of context that a [`Decoder`] keeps.
const WINDOW: usize = 6;
/// A character has at most four bytes, so at most three tokens wait for the rest of it.
const MAX_HELD: usize = 3;

impl Tokenizer {
    /// A decoder for tokens that come one by one behind a prompt.
    pub fn decoder(&self, prompt: &[u32], skip_special: bool) -> Decoder<'_> {
        let ids = prompt[prompt.len().saturating_sub(WINDOW)..].to_vec();
        let shown = self.decode(&ids, skip_special).len();
        Decoder { tokenizer: self, skip_special, ids, shown, held: 0 }
    }
}

/// Turns tokens into text as they come, whole characters only.
pub struct Decoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    ids: Vec<u32>,
    /// Bytes of the window's text that are out already.
    shown: usize,
    held: usize,
}

impl Decoder<'_> {
    /// The text that is complete with this token, if any.
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

    /// What is left when no token follows: an incomplete character shows as U+FFFD.
    pub fn finish(&mut self) -> Option<String> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special);
        let new = text.get(self.shown..).filter(|t| !t.is_empty()).map(String::from);
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
