//! Tokenizers from `tokenizer.json` files and from the vocabularies of GGUF files.

use super::library::{self, guarded};
use super::spm::Spm;
use super::vocab::{BYTE, NORMAL};
use super::{ChatTemplate, Piece, SpecialTokens, Vocab, bpe};
use crate::{Error, Result};
use std::path::Path;
use std::sync::{Arc, OnceLock};

pub(super) enum Kind {
    /// The second tokenizer reads control tokens as plain text; it is made on first use.
    Library(Box<tokenizers::Tokenizer>, OnceLock<Box<tokenizers::Tokenizer>>),
    Spm(Box<Spm>),
}

/// Encodes text as tokens and decodes tokens as text. Clones share one tokenizer.
///
/// ```
/// use mixlora::text::{Tokenizer, Vocab};
/// let tokens: Vec<String> = ["a", "b", "c", "ab"].map(String::from).to_vec();
/// let merges = Some(vec!["a b".to_string()]);
/// let vocab = Vocab { model: "gpt2".into(), pre: "gpt-2".into(), tokens, merges, ..Vocab::default() };
/// let tokenizer = Tokenizer::from_vocab(vocab)?;
/// assert_eq!(tokenizer.encode("abc", true)?, [3, 2]);
/// assert_eq!(tokenizer.decode(&[3, 2], true), "abc");
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    pub(super) kind: Arc<Kind>,
    pub(super) size: usize,
    /// The largest id of an ordinary token, plus one.
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
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Tokenizer({} tokens, bos {:?}, eos {:?})", self.size, self.bos, self.eos)
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// The file cannot be read, or is not a tokenizer file.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = crate::io::read_text(path)?;
        Self::from_json(text.as_bytes()).map_err(|error| match error {
            Error::Refused { what, .. } => Error::file(path, format!("not a usable tokenizer.json: {what}")),
            error => error,
        })
    }

    /// Parses the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// The text is not a tokenizer file.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let place = "tokenizer.json";
        let mut library = library::open(json)?;
        let plain = guarded(place, || Ok(library.encode("a", false)?.get_ids().to_vec()))?;
        let surrounded = guarded(place, || Ok(library.encode("a", true)?.get_ids().to_vec()))?;
        let at = surrounded.windows(plain.len().max(1)).position(|window| window == plain).unwrap_or(0);
        let bos = surrounded[..at].first().copied();
        let eos = surrounded.get(at + plain.len()..).and_then(|after| after.first().copied());
        // The post-processor adds these tokens and may trim whitespace from token ranges; both are done here instead.
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
    /// The kind or the pre-tokenizer is unknown, or the lists have different lengths.
    pub fn from_vocab(vocab: Vocab) -> Result<Self> {
        let mut vocab = vocab;
        let refuse = |what: String| Err(Error::refused("vocabulary", what));
        let size = vocab.tokens.len();
        if size == 0 || u32::try_from(size).is_err() {
            return refuse(format!("{size} tokens"));
        }
        if vocab.types.is_empty() {
            vocab.types = vec![1; size];
        }
        if vocab.types.len() != size {
            return refuse(format!("{} token types for {size} tokens", vocab.types.len()));
        }
        let named = [("bos", vocab.bos), ("eos", vocab.eos), ("unknown", vocab.unk), ("pad", vocab.pad)];
        let ends = vocab.ends.iter().map(|id| ("end", Some(*id)));
        for (name, id) in named.into_iter().chain(ends) {
            if let Some(id) = id.filter(|id| *id as usize >= size) {
                return refuse(format!("the {name} token is {id}, but there are {size} tokens"));
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
                return Err(Error::refused("tokenizer.ggml.model", what));
            }
        };
        let ordinary =
            vocab.types.iter().rposition(|kind| matches!(*kind, NORMAL | BYTE)).map_or(0, |last| last + 1);
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
        // Such files name one end token even if the model ends its turns with another; llama.cpp does the same.
        let known: Vec<u32> = tokenizer.known_ends().collect();
        tokenizer.ends.extend(known);
        tokenizer.name_by_id();
        if let Some(unk) = vocab.unk.and_then(|id| tokenizer.token(id)) {
            tokenizer.special = std::mem::take(&mut tokenizer.special).with("unk_token", unk);
        }
        Ok(tokenizer)
    }

    /// The same with a control token, behind all others, where there is none of that name: a model that was made for text
    /// has none for pictures.
    ///
    /// # Errors
    /// The tokenizer library refuses.
    pub fn with_control(mut self, token: &str) -> Result<Self> {
        if self.token_id(token).is_some() {
            return Ok(self);
        }
        let kind = match &*self.kind {
            Kind::Spm(spm) => Kind::Spm(Box::new(spm.with_control(token)?)),
            Kind::Library(library, _) => {
                let mut library = library.clone();
                let token = tokenizers::AddedToken::from(token, true).normalized(false);
                guarded("tokenizer", || library.add_special_tokens([token]))?;
                Kind::Library(library, OnceLock::new())
            }
        };
        self.kind = Arc::new(kind);
        self.size = self.size.max(self.token_id(token).map_or(0, |id| id as usize + 1));
        Ok(self)
    }

    /// Writes the text of a `tokenizer.json`; none for a SentencePiece vocabulary, which that format cannot represent
    /// exactly.
    ///
    /// # Errors
    /// The tokenizer library refuses.
    pub fn to_json(&self) -> Result<Option<String>> {
        match &*self.kind {
            Kind::Spm(_) => Ok(None),
            Kind::Library(library, _) => {
                let token = |id: Option<u32>| id.and_then(|id| Some((id, self.token(id)?)));
                let before = self.bos.filter(|_| self.add_bos);
                let after = self.eos.filter(|_| self.add_eos);
                let mut library = library.clone();
                if before.or(after).is_some() {
                    library.with_post_processor(Some(library::surround(token(before), token(after))?));
                }
                library
                    .to_string(true)
                    .map(Some)
                    .map_err(|error| Error::refused("tokenizer.json", error.to_string()))
            }
        }
    }

    /// Encodes a text without adding a start or end token. With `special`, control tokens are matched in the text;
    /// otherwise they are plain text.
    ///
    /// # Errors
    /// The tokenizer library refuses, or the vocabulary lacks a byte.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        Ok(self.encode_pieces(text, special)?.into_iter().map(|piece| piece.id).collect())
    }

    /// Encodes plain text at the start of a sequence, with a leading bos token if the vocabulary asks for one and the
    /// text does not begin with it. Chat templates write their own.
    ///
    /// # Errors
    /// The same as for [`encode`](Self::encode).
    pub fn encode_start(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, true)?;
        if let Some(bos) = self.bos().filter(|bos| self.add_bos() && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Like [`encode`](Self::encode), with the byte range of each token.
    ///
    /// # Errors
    /// The same as for [`encode`](Self::encode).
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
        Ok(encoding
            .get_ids()
            .iter()
            .zip(places)
            .map(|(&id, &(start, end))| Piece { id, source: start..end })
            .collect())
    }

    /// Encodes a text from a byte on, with the tokens of the whole text if one of them begins at that byte.
    ///
    /// # Errors
    /// The same as for [`encode`](Self::encode).
    pub fn encode_from(&self, text: &str, start: usize) -> Result<Vec<u32>> {
        let pieces = self.encode_pieces(text, true)?;
        let at = pieces.iter().position(|piece| piece.source.start >= start).unwrap_or(pieces.len());
        if pieces[..at].iter().all(|piece| piece.source.end <= start) {
            return Ok(pieces[at..].iter().map(|piece| piece.id).collect());
        }
        let rest = text.get(start..).unwrap_or("");
        match &*self.kind {
            Kind::Spm(spm) => Ok(spm.encode(rest, true, false)?.into_iter().map(|piece| piece.id).collect()),
            Kind::Library(..) => self.encode(rest, true),
        }
    }

    /// Decodes tokens. Bytes that are not UTF-8 become U+FFFD; ids outside the vocabulary are skipped.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        match &*self.kind {
            Kind::Spm(spm) => spm.decode(ids, skip_special),
            Kind::Library(library, _) => {
                guarded("tokenizer", || library.decode(ids, skip_special)).unwrap_or_default()
            }
        }
    }

    /// The id of a token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &*self.kind {
            Kind::Spm(spm) => spm.token_id(token),
            Kind::Library(library, _) => library.token_to_id(token),
        }
    }
    /// The text of a token as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        match &*self.kind {
            Kind::Spm(spm) => spm.token(id).map(String::from),
            Kind::Library(library, _) => library.id_to_token(id),
        }
    }
    /// The largest id, plus one.
    pub fn vocab_size(&self) -> usize {
        self.size
    }
    /// The start token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }
    /// The end token.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }
    /// The padding token, else the end token, else token 0.
    pub fn pad(&self) -> u32 {
        self.pad.or(self.eos).unwrap_or(0)
    }
    /// Tests whether plain text starts with the bos token.
    pub fn add_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }
    /// Tests whether the vocabulary asks for an end token after every text. Training always appends one.
    pub fn add_eos(&self) -> bool {
        self.add_eos && self.eos.is_some()
    }
    /// Sets whether the vocabulary asks for an end token after every text.
    pub fn set_add_eos(&mut self, add: bool) {
        self.add_eos = add;
    }

    /// Sets whether plain text starts with the bos token.
    pub fn set_add_bos(&mut self, add: bool) {
        self.add_bos = add;
    }

    /// The padding token of a model whose embedding has `rows` rows and may lack the one of the vocabulary.
    pub fn pad_within(&self, rows: usize) -> u32 {
        [self.pad, self.eos].into_iter().flatten().find(|id| (*id as usize) < rows).unwrap_or(0)
    }

    /// Checks that an embedding with `rows` rows has a row for every ordinary token. Unused rows are common and fine,
    /// and so are added tokens without a row that no text contains.
    ///
    /// # Errors
    /// Ordinary tokens have no row.
    pub fn check_rows(&self, rows: usize) -> Result<()> {
        if self.ordinary <= rows {
            return Ok(());
        }
        let what = format!(
            "has {} tokens, but the embedding has {rows} rows; is it the tokenizer of this model?",
            self.size
        );
        Err(Error::refused("tokenizer", what))
    }

    /// Renders a conversation with this tokenizer's special tokens.
    ///
    /// # Errors
    /// The template fails or refuses the conversation.
    pub fn render(
        &self,
        template: &ChatTemplate,
        messages: &[super::Message],
        add_generation_prompt: bool,
    ) -> Result<String> {
        template.render(messages, add_generation_prompt, &self.special)
    }

    /// The special tokens that templates can refer to.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }
}
