//! Byte-level BPE from a plain vocabulary, with the pre-tokenizers that GGUF files name.
//!
//! The patterns are those of the models' own tokenizer files, under the names that llama.cpp gives them.

use super::Vocab;
use super::vocab::{CONTROL, UNKNOWN, USER};
use crate::{Error, Result};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// How text is cut before merging. Each pattern cuts the pieces of the one before; what no pattern matches stays
/// one piece.
struct Pre {
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    /// A piece that is a token as a whole is taken without merging.
    whole_first: bool,
    /// Plain text starts with the bos token where a file does not say whether it does.
    adds_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PRE: &[Pre] = &[
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        patterns: &[r"\p{N}", GPT2],
        whole_first: false,
        adds_bos: false,
    },
    Pre {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"],
        patterns: &[GPT2],
        whole_first: false,
        adds_bos: false,
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        patterns: &[LLAMA3],
        whole_first: true,
        adds_bos: true,
    },
    Pre { names: &["dbrx", "smaug-bpe"], patterns: &[LLAMA3], whole_first: false, adds_bos: false },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan"],
        patterns: &[QWEN2],
        whole_first: false,
        adds_bos: false,
    },
    Pre { names: &["tekken"], patterns: &[TEKKEN], whole_first: true, adds_bos: true },
    Pre {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        whole_first: false,
        adds_bos: false,
    },
    Pre {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        whole_first: false,
        adds_bos: false,
    },
];

fn find(name: &str) -> Result<&'static Pre> {
    PRE.iter().find(|p| p.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = PRE.iter().flat_map(|p| p.names).copied().collect();
        Error::config(
            "tokenizer.ggml.pre",
            format!("pre-tokenizer '{name}' is not known; known are {}", known.join(", ")),
        )
    })
}

/// Whether llama.cpp puts the bos token before the plain text of files with this pre-tokenizer.
pub(super) fn adds_bos(name: &str) -> bool {
    find(name).is_ok_and(|pre| pre.adds_bos)
}

/// The tokenizer of a vocabulary of kind `gpt2`.
pub(super) fn build(vocab: &Vocab) -> Result<Tokenizer> {
    let fail = |what: String| Error::config("vocabulary", what);
    let pre = find(&vocab.pre)?;
    let merges = vocab.merges.as_deref().ok_or_else(|| fail("has no merges, which BPE needs".into()))?;
    let pairs = merges.iter().enumerate().map(|(i, merge)| {
        // A part may begin with a space, but neither is empty.
        let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        at.map(|at| (merge[..at].to_string(), merge[at + 1..].to_string()))
            .ok_or_else(|| fail(format!("merge {i}, '{merge}', is not two parts with a space between")))
    });
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    let index = vocab.tokens.iter().enumerate().map(|(i, t)| (t.clone(), i as u32)).collect();
    let model = BPE::builder()
        .vocab_and_merges::<tokenizers::models::bpe::Vocab>(index, pairs)
        .ignore_merges(pre.whole_first)
        .build()
        .map_err(|e| fail(e.to_string()))?;
    let mut tokenizer = Tokenizer::new(model);
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in pre.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_string());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        steps.push(split.map_err(|e| fail(e.to_string()))?.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, false, false)));
    let added = vocab.tokens.iter().zip(&vocab.types).filter_map(|(token, kind)| match *kind {
        CONTROL | UNKNOWN => Some(AddedToken::from(token.clone(), true).normalized(false)),
        USER => Some(AddedToken::from(token.clone(), false).normalized(false)),
        _ => None,
    });
    tokenizer.add_tokens(added).map_err(|e| fail(e.to_string()))?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_compiles() {
        for pattern in PRE.iter().flat_map(|p| p.patterns) {
            let pattern = SplitPattern::Regex((*pattern).to_string());
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
        }
    }
}
