//! Tokenizers from `tokenizer.json` files and from the vocabularies of GGUF files.

use super::library::{self, guarded};
use super::spm::Spm;
use super::vocab::{BYTE, NORMAL};
use super::{ChatTemplate, SpecialTokens, Vocab, bpe};
use crate::{Error, Result};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// A token and the bytes of the text that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub id: u32,
    pub source: Range<usize>,
}

pub(super) enum Kind {
    /// The second one takes control tokens in a text for plain text; it is made when it is first needed.
    Library(Box<tokenizers::Tokenizer>, OnceLock<Box<tokenizers::Tokenizer>>),
    Spm(Box<Spm>),
}

/// Text to tokens and back. Cloning gives the same tokenizer.
#[derive(Clone)]
pub struct Tokenizer {
    pub(super) kind: Arc<Kind>,
    pub(super) size: usize,
    /// One more than the largest id of an ordinary token.
    ordinary: usize,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) pad: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    /// End tokens besides `eos`.
    pub(super) ends: Vec<u32>,
    /// No file names an end token.
    pub(super) ends_by_name: bool,
    pub(super) special: SpecialTokens,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens, bos {:?}, eos {:?})", self.size, self.bos, self.eos)
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
        let mut library = library::open(json)?;
        let plain = guarded(place, || Ok(library.encode("a", false)?.get_ids().to_vec()))?;
        let dressed = guarded(place, || Ok(library.encode("a", true)?.get_ids().to_vec()))?;
        let at = dressed.windows(plain.len().max(1)).position(|w| w == plain).unwrap_or(0);
        let bos = dressed[..at].first().copied();
        let eos = dressed.get(at + plain.len()..).and_then(|after| after.first().copied());
        // It adds these tokens, and may cut whitespace off the places of tokens.
        library.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let ordinary = library.get_vocab(false).values().max().map_or(0, |id| *id as usize + 1);
        let mut tokenizer = Tokenizer {
            kind: Arc::new(Kind::Library(Box::new(library), OnceLock::new())),
            size: 0,
            ordinary,
            bos,
            eos,
            pad: None,
            add_bos: bos.is_some(),
            add_eos: eos.is_some(),
            ends: Vec::new(),
            ends_by_name: eos.is_none(),
            special: SpecialTokens::default(),
        };
        tokenizer.size = tokenizer.count();
        tokenizer.eos = eos.or_else(|| tokenizer.known_ends().next());
        tokenizer.name_by_id();
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
        let named = [("bos", vocab.bos), ("eos", vocab.eos), ("unknown", vocab.unk), ("pad", vocab.pad)];
        let ends = vocab.ends.iter().map(|id| ("end", Some(*id)));
        for (name, id) in named.into_iter().chain(ends) {
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
        let ordinary =
            vocab.types.iter().rposition(|kind| matches!(*kind, NORMAL | BYTE)).map_or(0, |i| i + 1);
        let mut tokenizer = Tokenizer {
            kind: Arc::new(kind),
            size,
            ordinary,
            bos: vocab.bos,
            eos: vocab.eos,
            pad: vocab.pad,
            add_bos: vocab.add_bos,
            add_eos: vocab.add_eos,
            ends_by_name: vocab.eos.is_none() && vocab.ends.is_empty(),
            ends: vocab.ends,
            special: SpecialTokens::default(),
        };
        // As llama.cpp: such files name one end, whatever the model ends its turns with.
        let known: Vec<u32> = tokenizer.known_ends().collect();
        tokenizer.ends.extend(known);
        tokenizer.name_by_id();
        if let Some(unk) = vocab.unk.and_then(|id| tokenizer.token(id)) {
            tokenizer.special = std::mem::take(&mut tokenizer.special).with("unk_token", unk);
        }
        Ok(tokenizer)
    }

    /// As the text of a `tokenizer.json`; none for a SentencePiece vocabulary, which that format cannot say in the
    /// same way.
    ///
    /// # Errors
    /// The library refuses.
    pub fn to_json(&self) -> Result<Option<String>> {
        match &*self.kind {
            Kind::Spm(_) => Ok(None),
            Kind::Library(library, _) => {
                let token = |id: Option<u32>| id.and_then(|id| Some((id, self.token(id)?)));
                let before = self.bos.filter(|_| self.add_bos);
                let after = self.eos.filter(|_| self.add_eos);
                let mut library = library.clone();
                if before.or(after).is_some() {
                    library.with_post_processor(Some(library::dressing(token(before), token(after))?));
                }
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
        let (library, literal) = match &*self.kind {
            Kind::Spm(spm) => return spm.encode(text, special, true),
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

    /// Tokens of the end of a text, from a byte on: as they are in the whole text, where a token begins there.
    pub fn encode_from(&self, text: &str, start: usize) -> Result<Vec<u32>> {
        let pieces = self.encode_pieces(text, true)?;
        let at = pieces.iter().position(|p| p.source.start >= start).unwrap_or(pieces.len());
        if pieces[..at].iter().all(|p| p.source.end <= start) {
            return Ok(pieces[at..].iter().map(|p| p.id).collect());
        }
        let rest = text.get(start..).unwrap_or("");
        match &*self.kind {
            Kind::Spm(spm) => Ok(spm.encode(rest, true, false)?.into_iter().map(|p| p.id).collect()),
            Kind::Library(..) => self.encode(rest, true),
        }
    }

    /// Text of tokens. Bytes that are not UTF-8 become U+FFFD; ids outside the vocabulary are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        match &*self.kind {
            Kind::Spm(spm) => spm.decode(ids, skip_special),
            Kind::Library(library, _) => {
                guarded("tokenizer", || library.decode(ids, skip_special)).unwrap_or_default()
            }
        }
    }

    /// The id of a token's text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &*self.kind {
            Kind::Spm(spm) => spm.token_id(token),
            Kind::Library(library, _) => library.token_to_id(token),
        }
    }
    /// A token's text as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        match &*self.kind {
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
    /// Sets whether the vocabulary asks for an end token behind every text.
    pub fn set_add_eos(&mut self, add: bool) {
        self.add_eos = add;
    }

    /// Sets whether plain text starts with the bos token.
    pub fn set_add_bos(&mut self, add: bool) {
        self.add_bos = add;
    }

    /// The padding token of a model with that many rows in its embedding, which may lack the vocabulary's own.
    pub fn pad_within(&self, rows: usize) -> u32 {
        [self.pad, self.eos].into_iter().flatten().find(|id| (*id as usize) < rows).unwrap_or(0)
    }

    /// Refuses a vocabulary with ordinary tokens that an embedding of that many rows lacks. Unused rows are common
    /// and fine, and so are added tokens without a row, as long as no text holds one.
    pub fn check_rows(&self, rows: usize) -> Result<()> {
        if self.ordinary <= rows {
            return Ok(());
        }
        let what = format!(
            "has {} tokens, but the embedding has {rows} rows; is it the tokenizer of this model?",
            self.size
        );
        Err(Error::config("tokenizer", what))
    }

    /// Renders with this tokenizer's special tokens.
    pub fn render(
        &self,
        template: &ChatTemplate,
        messages: &[super::Message],
        add_generation_prompt: bool,
    ) -> Result<String> {
        template.render(messages, add_generation_prompt, &self.special)
    }

    /// The special tokens that templates can name.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }
}
