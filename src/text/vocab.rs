//! Vocabularies in the metadata of GGUF files.

use super::pre_tokenizers::adds_bos;
use crate::Result;
use crate::io::GgufFile;

// Token kinds by their numbers in GGUF files.
pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER: i32 = 4;
pub(super) const UNUSED: i32 = 5;
pub(super) const BYTE: i32 = 6;

/// A vocabulary in the form of GGUF metadata, for [`Tokenizer::from_vocab`](super::Tokenizer::from_vocab).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vocab {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece with scores).
    pub model: String,
    /// `tokenizer.ggml.pre`: the pre-tokenizer; only read for `gpt2`.
    pub pre: String,
    /// `tokenizer.ggml.tokens`
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`, one per token; an empty list makes every token an ordinary one.
    pub types: Vec<i32>,
    /// `tokenizer.ggml.scores`; `llama` needs them.
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.merges`; `gpt2` needs them.
    pub merges: Option<Vec<String>>,
    /// `tokenizer.ggml.bos_token_id`: the start token.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`: the end token.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`: the token of unknown text.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`: the padding token.
    pub pad: Option<u32>,
    /// Further tokens that end an answer, a turn or a message.
    pub ends: Vec<u32>,
    /// Plain text starts with the bos token. Chat templates write their own.
    pub add_bos: bool,
    /// Plain text ends with the eos token.
    pub add_eos: bool,
    /// A space is put before text and after control tokens; only read for `llama`.
    pub add_space_prefix: bool,
}

impl Vocab {
    /// Reads the metadata of a file, with the defaults of llama.cpp for absent keys.
    ///
    /// # Errors
    /// The tokens are missing, or an entry has another type.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let contains = |name: &str| file.get(&key(name)).is_some();
        let id = |name: &str| contains(name).then(|| file.u32(&key(name))).transpose();
        let flag = |name: &str, absent: bool| if contains(name) { file.bool(&key(name)) } else { Ok(absent) };
        let model = file.str(&key("model"))?.to_string();
        let pre = if contains("pre") { file.str(&key("pre"))? } else { "default" }.to_string();
        let spm = model == "llama";
        let tokens = file.strings(&key("tokens"))?.to_vec();
        // Files of SentencePiece vocabularies may omit the ids that used to be the same in all of them.
        let default = |id: u32| Some(id).filter(|id| spm && (*id as usize) < tokens.len());
        Ok(Vocab {
            types: if contains("token_type") { file.i32s(&key("token_type"))? } else { Vec::new() },
            scores: if contains("scores") { Some(file.f32s(&key("scores"))?.to_vec()) } else { None },
            merges: if contains("merges") { Some(file.strings(&key("merges"))?.to_vec()) } else { None },
            bos: id("bos_token_id")?.or(default(1)),
            eos: id("eos_token_id")?.or(default(2)),
            unk: id("unknown_token_id")?.or(default(0)),
            pad: id("padding_token_id")?,
            ends: [id("eot_token_id")?, id("eom_token_id")?].into_iter().flatten().collect(),
            add_bos: flag("add_bos_token", spm || adds_bos(&pre))?,
            add_eos: flag("add_eos_token", false)?,
            add_space_prefix: flag("add_space_prefix", true)?,
            model,
            pre,
            tokens,
        })
    }
}
