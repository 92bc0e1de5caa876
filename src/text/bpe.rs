//! Byte-level BPE from the vocabulary of a GGUF file, with the pre-tokenizers that such files name.
//!
//! The patterns come from the models' own tokenizer files; llama.cpp gives the names.

use super::Vocab;
use super::vocab::{CONTROL, UNKNOWN, USER};
use crate::{Error, Result};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// A pre-tokenizer: it splits text before merging. Each pattern splits the pieces of the previous one; text that no
/// pattern matches stays one piece.
struct PreTokenizer {
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    /// A piece that is itself a token needs no merging.
    whole_first: bool,
    /// Default of `add_bos_token` for files without this key.
    adds_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        patterns: &[r"\p{N}", GPT2],
        whole_first: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"],
        patterns: &[GPT2],
        whole_first: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        patterns: &[LLAMA3],
        whole_first: true,
        adds_bos: true,
    },
    PreTokenizer { names: &["dbrx", "smaug-bpe"], patterns: &[LLAMA3], whole_first: false, adds_bos: false },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan"],
        patterns: &[QWEN2],
        whole_first: false,
        adds_bos: false,
    },
    PreTokenizer { names: &["tekken"], patterns: &[TEKKEN], whole_first: true, adds_bos: true },
    PreTokenizer {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        whole_first: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        whole_first: false,
        adds_bos: false,
    },
];

fn find(name: &str) -> Result<&'static PreTokenizer> {
    PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).copied().collect();
        Error::config(
            "tokenizer.ggml.pre",
            format!("pre-tokenizer '{name}' is not known; known are {}", known.join(", ")),
        )
    })
}

/// Tests whether llama.cpp puts the bos token before plain text for this pre-tokenizer.
pub(super) fn adds_bos(name: &str) -> bool {
    find(name).is_ok_and(|pre| pre.adds_bos)
}

/// The tokenizer of a vocabulary of kind `gpt2`.
pub(super) fn build(vocab: &Vocab) -> Result<Tokenizer> {
    let refusal = |what: String| Error::config("vocabulary", what);
    let pre = find(&vocab.pre)?;
    let merges = vocab.merges.as_deref().ok_or_else(|| refusal("has no merges, which BPE needs".into()))?;
    let pairs = merges.iter().enumerate().map(|(index, merge)| {
        // Either part may begin with a space; neither is empty.
        let at = merge.char_indices().skip(1).find(|(_, character)| *character == ' ').map(|(at, _)| at);
        at.map(|at| (merge[..at].to_string(), merge[at + 1..].to_string())).ok_or_else(|| {
            refusal(format!("merge {index}, '{merge}', is not two parts with a space between"))
        })
    });
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    let ids = vocab.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)).collect();
    let model = BPE::builder()
        .vocab_and_merges::<tokenizers::models::bpe::Vocab>(ids, pairs)
        .ignore_merges(pre.whole_first)
        .build()
        .map_err(|error| refusal(error.to_string()))?;
    let mut tokenizer = Tokenizer::new(model);
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in pre.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_string());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        steps.push(split.map_err(|error| refusal(error.to_string()))?.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, false, false)));
    let added = vocab.tokens.iter().zip(&vocab.types).filter_map(|(token, kind)| match *kind {
        CONTROL | UNKNOWN => Some(AddedToken::from(token.clone(), true).normalized(false)),
        USER => Some(AddedToken::from(token.clone(), false).normalized(false)),
        _ => None,
    });
    tokenizer.add_tokens(added).map_err(|error| refusal(error.to_string()))?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_compiles() {
        for pattern in PRE_TOKENIZERS.iter().flat_map(|pre| pre.patterns) {
            let pattern = SplitPattern::Regex((*pattern).to_string());
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
        }
    }
}
