//! Byte-level BPE from the vocabulary of a GGUF file.

use super::Vocab;
use super::pre_tokenizers::find;
use super::vocab::{CONTROL, UNKNOWN, USER};
use crate::{Error, Result};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// The tokenizer of a vocabulary of kind `gpt2`.
pub(super) fn build(vocab: &Vocab) -> Result<Tokenizer> {
    let refusal = |what: String| Error::refused("vocabulary", what);
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
