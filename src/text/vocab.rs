//! Vocabularies in the metadata of GGUF files.

use super::bpe;
use crate::Result;
use crate::io::GgufFile;

// Token kinds, as GGUF numbers them.
pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER: i32 = 4;
pub(super) const BYTE: i32 = 6;

/// A vocabulary as GGUF metadata holds it, for [`Tokenizer::from_vocab`](super::Tokenizer::from_vocab).
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
    /// Further tokens that end an answer, a turn or a message.
    pub ends: Vec<u32>,
    /// Plain text starts with the bos token. Chat templates write their own.
    pub add_bos: bool,
    pub add_eos: bool,
    /// A space is put before text and behind control tokens; only read for `llama`.
    pub add_space_prefix: bool,
}

impl Vocab {
    /// Reads a file's metadata; where it has no key, what llama.cpp takes then.
    ///
    /// # Errors
    /// The tokens are missing, or an entry has another type.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let has = |name: &str| file.get(&key(name)).is_some();
        let id = |name: &str| has(name).then(|| file.u32(&key(name))).transpose();
        let flag = |name: &str, absent: bool| if has(name) { file.bool(&key(name)) } else { Ok(absent) };
        let model = file.str(&key("model"))?.to_string();
        let pre = if has("pre") { file.str(&key("pre"))? } else { "default" }.to_string();
        let spm = model == "llama";
        let tokens = file.strings(&key("tokens"))?.to_vec();
        // Files of SentencePiece vocabularies may leave out the ids that all of them had once.
        let usual = |id: u32| Some(id).filter(|id| spm && (*id as usize) < tokens.len());
        Ok(Vocab {
            types: if has("token_type") { file.i32s(&key("token_type"))? } else { Vec::new() },
            scores: if has("scores") { Some(file.f32s(&key("scores"))?.to_vec()) } else { None },
            merges: if has("merges") { Some(file.strings(&key("merges"))?.to_vec()) } else { None },
            bos: id("bos_token_id")?.or(usual(1)),
            eos: id("eos_token_id")?.or(usual(2)),
            unk: id("unknown_token_id")?.or(usual(0)),
            pad: id("padding_token_id")?,
            ends: [id("eot_token_id")?, id("eom_token_id")?].into_iter().flatten().collect(),
            add_bos: flag("add_bos_token", spm || bpe::adds_bos(&pre))?,
            add_eos: flag("add_eos_token", false)?,
            add_space_prefix: flag("add_space_prefix", true)?,
            model,
            pre,
            tokens,
        })
    }
}
