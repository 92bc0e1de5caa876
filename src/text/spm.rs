//! SentencePiece vocabularies with scores, as in the GGUF files of Llama 2 and Mistral.
//!
//! Encoding repeatedly merges the pair whose joint text has the highest score, the leftmost one among equals, until no
//! pair is a token. Characters without a token become byte tokens.

use super::vocab::{BYTE, CONTROL, UNKNOWN, USER};
use super::{Piece, Vocab};
use crate::{Error, Result};
use aho_corasick::{AhoCorasick, MatchKind};
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;

/// The space character of SentencePiece.
const SPACE: char = '\u{2581}';

/// Kinds of tokens that are matched verbatim.
const LITERAL: [i32; 3] = [CONTROL, USER, UNKNOWN];

#[derive(Debug, Clone)]
pub(super) struct Spm {
    tokens: Vec<String>,
    types: Vec<i32>,
    scores: Vec<f32>,
    index: HashMap<String, u32>,
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
    /// Tokens that are matched verbatim: control, unknown and user-defined ones.
    literals: Literals,
    /// The user-defined ones among them.
    user_defined: Literals,
    space_prefix: bool,
}

/// Tokens that are matched verbatim; the longest match at a position wins.
#[derive(Debug, Clone)]
struct Literals {
    ids: Vec<u32>,
    automaton: AhoCorasick,
}

impl Literals {
    fn new(tokens: &[String], types: &[i32], kinds: &[i32]) -> Result<Self> {
        let tokens = tokens.iter().zip(types).zip(0..);
        let wanted = tokens.filter(|((token, kind), _)| kinds.contains(kind) && !token.is_empty());
        let (texts, ids): (Vec<&String>, Vec<u32>) = wanted.map(|((token, _), id)| (token, id)).unzip();
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
        let automaton = automaton.map_err(|error| Error::refused("vocabulary", error.to_string()))?;
        Ok(Literals { ids, automaton })
    }

    fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Piece> + 'a {
        let piece =
            |found: aho_corasick::Match| Piece { id: self.ids[found.pattern()], source: found.range() };
        self.automaton.find_iter(text).map(piece)
    }
}

/// A part of the text that is one token so far; empty once it is merged into its left neighbour.
struct Symbol {
    escaped: Range<usize>,
    source: Range<usize>,
    left: Option<usize>,
    right: Option<usize>,
}

struct Pair {
    score: f32,
    left: usize,
    right: usize,
    bytes: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}
impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Pair {}

fn byte_of(token: &str) -> Option<u8> {
    u8::from_str_radix(token.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

impl Spm {
    pub(super) fn new(vocab: &Vocab) -> Result<Self> {
        let count = vocab.tokens.len();
        let scores = vocab.scores.clone().unwrap_or_default();
        if scores.len() != count {
            return Err(Error::refused("vocabulary", format!("{} scores for {count} tokens", scores.len())));
        }
        let mut bytes = vec![None; 256];
        let mut index = HashMap::with_capacity(count);
        for (i, (token, kind)) in vocab.tokens.iter().zip(&vocab.types).enumerate() {
            index.insert(token.clone(), i as u32);
            if let Some(byte) = byte_of(token).filter(|_| *kind == BYTE) {
                bytes[byte as usize] = Some(i as u32);
            }
        }
        Ok(Spm {
            tokens: vocab.tokens.clone(),
            types: vocab.types.clone(),
            scores,
            index,
            bytes,
            unknown: vocab.unk,
            literals: Literals::new(&vocab.tokens, &vocab.types, &LITERAL)?,
            user_defined: Literals::new(&vocab.tokens, &vocab.types, &[USER])?,
            space_prefix: vocab.add_space_prefix,
        })
    }

    /// The same with one more control token, behind all others.
    pub(super) fn with_control(&self, token: &str) -> Result<Self> {
        let mut more = self.clone();
        more.index.insert(token.into(), more.tokens.len() as u32);
        more.tokens.push(token.into());
        more.types.push(CONTROL);
        more.scores.push(0.0);
        more.literals = Literals::new(&more.tokens, &more.types, &LITERAL)?;
        Ok(more)
    }

    pub(super) fn token_id(&self, token: &str) -> Option<u32> {
        self.index.get(token).copied()
    }
    pub(super) fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    pub(super) fn is_control(&self, token: &str) -> bool {
        self.token_id(token).is_some_and(|id| self.types[id as usize] == CONTROL)
    }

    /// Encodes a text that starts with a word or, without `starts_word`, inside of one.
    pub(super) fn encode(&self, text: &str, special: bool, starts_word: bool) -> Result<Vec<Piece>> {
        let literals = if special { &self.literals } else { &self.user_defined };
        let mut pieces = Vec::new();
        let mut at = 0;
        for literal in literals.find(text) {
            // A word begins after a control token, as at the start of the text.
            self.encode_plain(text, at..literal.source.start, starts_word || at > 0, &mut pieces)?;
            at = literal.source.end;
            pieces.push(literal);
        }
        self.encode_plain(text, at..text.len(), starts_word || at > 0, &mut pieces)?;
        Ok(pieces)
    }

    fn encode_plain(
        &self,
        text: &str,
        range: Range<usize>,
        starts_word: bool,
        pieces: &mut Vec<Piece>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut escaped = String::with_capacity(range.len() + 3);
        let mut symbols: Vec<Symbol> = Vec::new();
        let mut add_symbol = |character: char, source: Range<usize>| {
            let start = escaped.len();
            escaped.push(if character == ' ' { SPACE } else { character });
            let left = symbols.len().checked_sub(1);
            symbols.push(Symbol { escaped: start..escaped.len(), source, left, right: None });
        };
        if self.space_prefix && starts_word {
            add_symbol(' ', range.start..range.start);
        }
        for (at, character) in text[range.clone()].char_indices() {
            add_symbol(character, range.start + at..range.start + at + character.len_utf8());
        }
        let count = symbols.len();
        for (i, symbol) in symbols.iter_mut().enumerate() {
            symbol.right = (i + 1 < count).then_some(i + 1);
        }
        self.merge(&escaped, &mut symbols);
        let mut next = (count > 0).then_some(0);
        while let Some(i) = next {
            let symbol = &symbols[i];
            next = symbol.right;
            let part = &escaped[symbol.escaped.clone()];
            if let Some(id) = self.token_id(part) {
                pieces.push(Piece { id, source: symbol.source.clone() });
                continue;
            }
            for byte in part.bytes() {
                let id = self.bytes[byte as usize].or(self.unknown).ok_or_else(|| {
                    let what = format!("has no token for byte {byte:#04x}, and no unknown token");
                    Error::refused("vocabulary", what)
                })?;
                pieces.push(Piece { id, source: symbol.source.clone() });
            }
        }
        Ok(())
    }

    fn pair(&self, escaped: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let joint = symbols[left].escaped.start..symbols[right].escaped.end;
        let id = self.token_id(&escaped[joint.clone()])?;
        Some(Pair { score: self.scores[id as usize], left, right, bytes: joint.len() })
    }

    fn merge(&self, escaped: &str, symbols: &mut [Symbol]) {
        let mut queue: BinaryHeap<Pair> =
            (1..symbols.len()).filter_map(|i| self.pair(escaped, symbols, i - 1, i)).collect();
        while let Some(Pair { left, right, bytes, .. }) = queue.pop() {
            let first = &symbols[left];
            let second = &symbols[right];
            // One of the two has been merged in the meantime.
            let joint = first.escaped.len() + second.escaped.len();
            if first.escaped.is_empty() || second.escaped.is_empty() || joint != bytes {
                continue;
            }
            let end = second.escaped.end;
            let source_end = second.source.end;
            let after = second.right;
            symbols[left].escaped.end = end;
            symbols[left].source.end = source_end;
            symbols[left].right = after;
            symbols[right].escaped = end..end;
            if let Some(after) = after {
                symbols[after].left = Some(left);
                queue.extend(self.pair(escaped, symbols, left, after));
            }
            if let Some(before) = symbols[left].left {
                queue.extend(self.pair(escaped, symbols, before, left));
            }
        }
    }

    pub(super) fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::new();
        // Decoding removes the space that encoding added.
        let mut word_start = self.space_prefix;
        for &id in ids {
            let (Some(token), Some(kind)) = (self.token(id), self.types.get(id as usize)) else { continue };
            match *kind {
                CONTROL | UNKNOWN => {
                    if !skip_special {
                        bytes.extend_from_slice(token.as_bytes());
                    }
                    word_start = self.space_prefix;
                    continue;
                }
                USER => bytes.extend_from_slice(token.as_bytes()),
                BYTE => match byte_of(token) {
                    Some(byte) => bytes.push(byte),
                    None => bytes.extend_from_slice(token.as_bytes()),
                },
                _ => {
                    let text = token.replace(SPACE, " ");
                    let text = if word_start { text.strip_prefix(' ').unwrap_or(&text) } else { &text };
                    bytes.extend_from_slice(text.as_bytes());
                }
            }
            word_start = self.space_prefix && *kind == USER;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
