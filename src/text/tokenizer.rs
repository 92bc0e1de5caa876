//! Tokenizers from `tokenizer.json` files and from the vocabularies of GGUF files.

use super::spm::Spm;
use super::{ChatTemplate, bpe};
use crate::{Error, Result};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::OnceLock;

// Token kinds, as GGUF numbers them.
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER: i32 = 4;
pub(super) const BYTE: i32 = 6;

/// Names under which models end a text or a turn.
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

/// A vocabulary as GGUF metadata holds it, for [`Tokenizer::from_vocab`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vocab {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece with scores).
    pub model: String,
    /// `tokenizer.ggml.pre`: how text is cut before merging; only read for `gpt2`.
    pub pre: String,
    /// `tokenizer.ggml.tokens`
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`, one per token, or none at all (then every token is an ordinary one).
    pub types: Vec<i32>,
    /// `tokenizer.ggml.scores`; `llama` needs them.
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.merges`; `gpt2` needs them.
    pub merges: Option<Vec<String>>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unk: Option<u32>,
    pub pad: Option<u32>,
    /// Plain text starts with the bos token. Chat templates write their own.
    pub add_bos: bool,
    pub add_eos: bool,
    /// A space is put before text and behind control tokens; only read for `llama`.
    pub add_space_prefix: bool,
}

/// A token and the bytes of the text that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub id: u32,
    pub source: Range<usize>,
}

enum Kind {
    /// The second one takes control tokens in a text for plain text; it is made when it is first needed.
    Library(Box<tokenizers::Tokenizer>, OnceLock<Box<tokenizers::Tokenizer>>),
    Spm(Box<Spm>),
}

/// Text to tokens and back.
pub struct Tokenizer {
    kind: Kind,
    size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    add_bos: bool,
    add_eos: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens, bos {:?}, eos {:?})", self.size, self.bos, self.eos)
    }
}

/// Runs code of the tokenizer library, which panics on some malformed files.
fn guarded<T>(place: &str, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|e| Error::config(place, e.to_string())),
        Err(_) => Err(Error::config(place, "the tokenizer library failed on this input")),
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// It cannot be read, or is not a tokenizer file.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = crate::io::read_text(path)?;
        Self::from_json(text.as_bytes()).map_err(|e| match e {
            Error::Config { what, .. } => Error::file(path, format!("not a usable tokenizer.json: {what}")),
            e => e,
        })
    }

    /// The tokenizer of a `tokenizer.json`'s text.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let place = "tokenizer.json";
        let mut library = guarded(place, || tokenizers::Tokenizer::from_bytes(json))?;
        // Files carry the truncation and padding of whoever saved them.
        library.with_truncation(None).map_err(|e| Error::config(place, e.to_string()))?;
        library.with_padding(None);
        let plain = guarded(place, || Ok(library.encode("a", false)?.get_ids().to_vec()))?;
        let dressed = guarded(place, || Ok(library.encode("a", true)?.get_ids().to_vec()))?;
        let at = dressed.windows(plain.len().max(1)).position(|w| w == plain).unwrap_or(0);
        let (before, after) = (&dressed[..at], dressed.get(at + plain.len()..).unwrap_or(&[]));
        let (add_bos, add_eos) = (!before.is_empty(), !after.is_empty());
        let (bos, eos) = (before.first().copied(), after.first().copied());
        // It adds these tokens, and may cut whitespace off the places of tokens.
        library.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let size = library.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        let kind = Kind::Library(Box::new(library), OnceLock::new());
        let mut tokenizer = Tokenizer { kind, size, bos, eos, pad: None, add_bos, add_eos };
        tokenizer.eos = tokenizer.eos.or_else(|| ENDS.iter().find_map(|t| tokenizer.token_id(t)));
        Ok(tokenizer)
    }

    /// The tokenizer of a GGUF file's vocabulary.
    ///
    /// # Errors
    /// The kind or the pre-tokenizer is not known, or the lists do not fit together.
    pub fn from_vocab(vocab: Vocab) -> Result<Self> {
        let mut vocab = vocab;
        let fail = |what: String| Err(Error::config("vocabulary", what));
        let size = vocab.tokens.len();
        if size == 0 || u32::try_from(size).is_err() {
            return fail(format!("{size} tokens"));
        }
        if vocab.types.is_empty() {
            vocab.types = vec![1; size];
        }
        if vocab.types.len() != size {
            return fail(format!("{} token types for {size} tokens", vocab.types.len()));
        }
        for (name, id) in [("bos", vocab.bos), ("eos", vocab.eos), ("unknown", vocab.unk), ("pad", vocab.pad)]
        {
            if let Some(id) = id.filter(|id| *id as usize >= size) {
                return fail(format!("the {name} token is {id}, but there are {size} tokens"));
            }
        }
        let kind = match vocab.model.as_str() {
            "gpt2" => {
                let library = guarded("vocabulary", || Ok(bpe::build(&vocab)))??;
                Kind::Library(Box::new(library), OnceLock::new())
            }
            "llama" => Kind::Spm(Box::new(Spm::new(&vocab)?)),
            other => {
                let what = format!("tokenizer model '{other}' is not known; known are gpt2, llama");
                return Err(Error::config("tokenizer.ggml.model", what));
            }
        };
        let Vocab { bos, eos, pad, add_bos, add_eos, .. } = vocab;
        Ok(Tokenizer { kind, size, bos, eos, pad, add_bos, add_eos })
    }

    /// As the text of a `tokenizer.json`; none for a SentencePiece vocabulary, which that format cannot say in the
    /// same way.
    ///
    /// # Errors
    /// The library refuses.
    pub fn to_json(&self) -> Result<Option<String>> {
        match &self.kind {
            Kind::Spm(_) => Ok(None),
            Kind::Library(library, _) => {
                library.to_string(true).map(Some).map_err(|e| Error::config("tokenizer.json", e.to_string()))
            }
        }
    }

    /// Tokens of a text. With `special`, control tokens written in the text are matched; without, their text is
    /// plain text. Nothing is put before or behind.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        Ok(self.encode_pieces(text, special)?.into_iter().map(|p| p.id).collect())
    }

    /// Tokens of plain text at the start of what a model reads: behind the bos token, where the vocabulary wants one
    /// and the text does not write it. Chat templates write their own.
    pub fn encode_start(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, true)?;
        if let Some(bos) = self.bos().filter(|bos| self.add_bos() && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Like [`encode`](Self::encode), with the place of each token.
    pub fn encode_pieces(&self, text: &str, special: bool) -> Result<Vec<Piece>> {
        let (library, literal) = match &self.kind {
            Kind::Spm(spm) => return spm.encode(text, special),
            Kind::Library(library, literal) => (library, literal),
        };
        let library = if special {
            library
        } else {
            literal.get_or_init(|| {
                let mut copy = library.clone();
                copy.set_encode_special_tokens(true);
                copy
            })
        };
        let encoding = guarded("tokenizer", || library.encode(text, false))?;
        let places = encoding.get_offsets().iter();
        Ok(encoding.get_ids().iter().zip(places).map(|(&id, &(a, b))| Piece { id, source: a..b }).collect())
    }

    /// Text of tokens. Bytes that are not UTF-8 become U+FFFD; ids outside the vocabulary are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        match &self.kind {
            Kind::Spm(spm) => spm.decode(ids, skip_special),
            Kind::Library(library, _) => {
                guarded("tokenizer", || library.decode(ids, skip_special)).unwrap_or_default()
            }
        }
    }

    /// A decoder for tokens that come one by one behind a prompt.
    pub fn decoder(&self, prompt: &[u32], skip_special: bool) -> Decoder<'_> {
        let ids = prompt[prompt.len().saturating_sub(WINDOW)..].to_vec();
        let shown = self.decode(&ids, skip_special).len();
        Decoder { tokenizer: self, skip_special, ids, shown, held: 0 }
    }

    /// The id of a token's text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.kind {
            Kind::Spm(spm) => spm.token_id(token),
            Kind::Library(library, _) => library.token_to_id(token),
        }
    }
    /// A token's text as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.kind {
            Kind::Spm(spm) => spm.token(id).map(String::from),
            Kind::Library(library, _) => library.id_to_token(id),
        }
    }
    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.size
    }
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }
    /// The padding token; without one, the end token, else token 0.
    pub fn pad(&self) -> u32 {
        self.pad.or(self.eos).unwrap_or(0)
    }
    /// Whether plain text starts with the bos token.
    pub fn add_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }
    /// Whether the vocabulary asks for an end token behind every text. Training puts one there always.
    pub fn add_eos(&self) -> bool {
        self.add_eos && self.eos.is_some()
    }
    /// Tokens that end a text or a turn.
    pub fn end_tokens(&self) -> Vec<u32> {
        let mut ends: Vec<u32> = self.eos.into_iter().collect();
        ends.extend(ENDS.iter().filter_map(|t| self.token_id(t)));
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    /// Sets the start, end and padding tokens by their text, as `tokenizer_config.json` names them.
    ///
    /// # Errors
    /// One is not in the vocabulary.
    pub fn set_tokens(&mut self, bos: Option<&str>, eos: Option<&str>, pad: Option<&str>) -> Result<()> {
        let find = |field: &str, text: Option<&str>, old: Option<u32>| match text {
            None => Ok(old),
            Some(text) => self.token_id(text).map(Some).ok_or_else(|| {
                Error::config(field, format!("'{text}' is not in the tokenizer's vocabulary"))
            }),
        };
        let bos = find("bos_token", bos, self.bos)?;
        let eos = find("eos_token", eos, self.eos)?;
        self.pad = find("pad_token", pad, self.pad)?;
        (self.bos, self.eos) = (bos, eos);
        Ok(())
    }

    /// Sets whether plain text starts with the bos token.
    pub fn set_add_bos(&mut self, add: bool) {
        self.add_bos = add;
    }

    /// Refuses a vocabulary with ids that an embedding of that many rows lacks. Unused rows are common and fine.
    pub fn check_rows(&self, rows: usize) -> Result<()> {
        if self.size <= rows {
            return Ok(());
        }
        let what = format!(
            "has {} tokens, but the embedding has {rows} rows; is it the tokenizer of this model?",
            self.size
        );
        Err(Error::config("tokenizer", what))
    }

    /// Renders with this tokenizer's start and end tokens.
    pub fn render(
        &self,
        template: &ChatTemplate,
        messages: &[super::Message],
        add_generation_prompt: bool,
    ) -> Result<String> {
        let text = |id: Option<u32>| id.and_then(|id| self.token(id));
        template.render(messages, add_generation_prompt, text(self.bos).as_deref(), text(self.eos).as_deref())
    }
}

/// Tokens of context that a [`Decoder`] keeps.
const WINDOW: usize = 6;
/// A character has at most four bytes, so at most three tokens wait for the rest of it.
const MAX_HELD: usize = 3;

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
