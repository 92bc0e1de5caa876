//! The pre-tokenizers that GGUF files name for byte-level BPE.
//!
//! The patterns come from the models' own tokenizer files; llama.cpp gives the names.

use crate::{Error, Result};

/// A pre-tokenizer: it splits text before merging. Each pattern splits the pieces of the previous one; text that no
/// pattern matches stays one piece.
pub(super) struct PreTokenizer {
    names: &'static [&'static str],
    pub patterns: &'static [&'static str],
    /// A piece that is itself a token needs no merging.
    pub whole_first: bool,
    /// Default of `add_bos_token` for files without this key.
    adds_bos: bool,
}

pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
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

/// The pre-tokenizer of a name.
///
/// # Errors
/// There is none; the error lists all.
pub(super) fn find(name: &str) -> Result<&'static PreTokenizer> {
    PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).copied().collect();
        Error::refused(
            "tokenizer.ggml.pre",
            format!("pre-tokenizer '{name}' is not known; known are {}", known.join(", ")),
        )
    })
}

/// Words of tokenizer files for parts of patterns that are written out here.
const WRITTEN_OUT: [(&str, &str); 1] =
    [("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")];

/// The name of a pre-tokenizer that splits by these patterns, if files have one for it.
pub(super) fn name_of(patterns: &[String], whole_first: bool) -> Option<&'static str> {
    let written_out = |pattern: &String| {
        WRITTEN_OUT.iter().fold(pattern.clone(), |pattern, (from, to)| pattern.replace(from, to))
    };
    let patterns: Vec<String> = patterns.iter().map(written_out).collect();
    let same = |pre: &&PreTokenizer| pre.whole_first == whole_first && pre.patterns == patterns;
    PRE_TOKENIZERS.iter().find(same).and_then(|pre| pre.names.first().copied())
}

/// Tests whether llama.cpp puts the bos token before plain text for this pre-tokenizer.
pub(super) fn adds_bos(name: &str) -> bool {
    find(name).is_ok_and(|pre| pre.adds_bos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::SplitDelimiterBehavior;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

    #[test]
    fn every_pattern_compiles() {
        for pattern in PRE_TOKENIZERS.iter().flat_map(|pre| pre.patterns) {
            let pattern = SplitPattern::Regex((*pattern).to_string());
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
        }
    }
}
