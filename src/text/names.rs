//! Special tokens of a vocabulary, and those that end an answer.

use super::library::guarded;
use super::tokenizer::Kind;
use super::{SpecialTokens, Tokenizer};
use crate::{Error, Result};
use std::sync::{Arc, OnceLock};
use tokenizers::AddedToken;

/// Names of tokens with which models end a text or a turn.
const ENDS: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<end_of_turn>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
];

impl Tokenizer {
    /// The tokens that end a text or a turn.
    pub fn end_tokens(&self) -> Vec<u32> {
        let mut ends: Vec<u32> = self.eos.into_iter().chain(self.ends.iter().copied()).collect();
        if self.ends_by_name {
            ends.extend(self.known_ends());
        }
        ends.sort_unstable();
        ends.dedup();
        ends
    }
    /// Tests whether end tokens are recognised by their names, because no file lists them.
    pub fn ends_by_name(&self) -> bool {
        self.ends_by_name
    }

    /// The control tokens with the name of an end token.
    pub(super) fn known_ends(&self) -> impl Iterator<Item = u32> {
        ENDS.iter().filter_map(|text| self.token_id(text).filter(|_| self.is_special(text)))
    }

    fn is_special(&self, token: &str) -> bool {
        match &*self.kind {
            Kind::Spm(spm) => spm.is_control(token),
            Kind::Library(library, _) => library.get_added_vocabulary().is_special_token(token),
        }
    }

    pub(super) fn count(&self) -> usize {
        match &*self.kind {
            Kind::Spm(_) => self.size,
            Kind::Library(library, _) => {
                library.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1)
            }
        }
    }

    /// Makes the start, end and padding tokens known to templates.
    pub(super) fn name_by_id(&mut self) {
        for (name, id) in [("bos_token", self.bos), ("eos_token", self.eos), ("pad_token", self.pad)] {
            if let Some(text) = id.and_then(|id| self.token(id)) {
                self.special = std::mem::take(&mut self.special).with(name, text);
            }
        }
    }

    /// Sets special tokens by their text, as the files beside a `tokenizer.json` list them. Other tokens that the
    /// vocabulary lacks are appended to it, as in transformers.
    ///
    /// # Errors
    /// The start or end token is not in the vocabulary.
    pub(super) fn name_tokens(&mut self, tokens: SpecialTokens, added: Vec<AddedToken>) -> Result<()> {
        self.add_tokens(added)?;
        let find_token = |field: &str, default: Option<u32>| match tokens.get(field) {
            None => Ok(default),
            Some(text) => self.token_id(text).map(Some).ok_or_else(|| {
                Error::refused(field, format!("'{text}' is not in the tokenizer's vocabulary"))
            }),
        };
        let bos = find_token("bos_token", self.bos)?;
        let eos = find_token("eos_token", self.eos)?;
        self.ends_by_name &= tokens.get("eos_token").is_none();
        let texts =
            tokens.named().map(|(_, text)| text).chain(tokens.additional().iter().map(String::as_str));
        self.add_tokens(texts.map(|text| AddedToken::from(text, true)).collect())?;
        self.pad = tokens.get("pad_token").and_then(|text| self.token_id(text)).or(self.pad);
        self.bos = bos;
        self.eos = eos;
        self.special = tokens;
        self.name_by_id();
        Ok(())
    }

    /// Adds the tokens that are not added tokens yet.
    fn add_tokens(&mut self, tokens: Vec<AddedToken>) -> Result<()> {
        // Tokens are added before the tokenizer is shared.
        let Some(Kind::Library(library, literal)) = Arc::get_mut(&mut self.kind) else { return Ok(()) };
        let known = library.get_added_vocabulary().get_vocab();
        let new: Vec<AddedToken> =
            tokens.into_iter().filter(|token| !known.contains_key(&token.content)).collect();
        if new.is_empty() {
            return Ok(());
        }
        guarded("tokenizer", || library.add_tokens(new))?;
        *literal = OnceLock::new();
        self.size = self.count();
        Ok(())
    }

    /// Sets the end tokens that a model's files name.
    pub fn name_ends(&mut self, ends: Vec<u32>) {
        let Some(&first) = ends.first() else { return };
        // The end token of a text is the one with the name of an end token.
        if self.ends_by_name {
            self.eos = self.eos.filter(|eos| ends.contains(eos)).or(Some(first));
            self.ends_by_name = false;
            self.name_by_id();
        }
        self.ends = ends;
    }

    /// Adds the known end tokens that a template writes and returns the new ones.
    pub(super) fn add_ends_of(&mut self, template: &str) -> Vec<u32> {
        let ends = self.end_tokens();
        let written = |id: &u32| self.token(*id).is_some_and(|text| template.contains(&text));
        let new: Vec<u32> = self.known_ends().filter(|id| !ends.contains(id)).filter(written).collect();
        self.ends.extend(&new);
        new
    }
}
