//! The tokenizer library: a `tokenizer.json` is checked for content that makes the library panic before it is opened.

use super::longest::Longest;
use super::regex::rewrite_patterns;
use crate::{Error, Result};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::any::Any;
use std::borrow::Cow;
use std::fmt::Formatter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::{PostProcessorWrapper, Tokenizer};

const PLACE: &str = "tokenizer.json";

fn refusal(what: impl ToString) -> Error {
    Error::refused(PLACE, what.to_string())
}

/// The text of a panic.
fn payload(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a reason")
}

/// Runs code of the library, which panics on some malformed files.
pub(super) fn guarded<T>(place: &str, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| Error::refused(place, error.to_string())),
        Err(panic) => Err(Error::refused(
            place,
            format!("the tokenizer library failed on this input: {}", payload(&*panic)),
        )),
    }
}

/// Bytes of the longest token. The library keeps the tokens of a Unigram model in a tree with a node per byte and frees
/// it by recursion, so that a token of some ten thousand bytes overflows the stack of a thread.
const LONGEST_TOKEN: usize = 4096;

/// The parts of a file that are looked at.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    model: Model,
}

/// The part `model`: its vocabulary is as large as the file, and only its longest string is kept.
#[derive(Default)]
struct Model {
    continuing_subword_prefix: Value,
    longest: usize,
}

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Model;
            fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
                f.write_str("a model")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> std::result::Result<Model, A::Error> {
                let mut model = Model::default();
                while let Some(key) = fields.next_key::<Cow<str>>()? {
                    if key == "continuing_subword_prefix" {
                        model.continuing_subword_prefix = fields.next_value()?;
                    } else {
                        model.longest = model.longest.max(fields.next_value::<Longest>()?.0);
                    }
                }
                Ok(model)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// Opens the text of a `tokenizer.json`.
pub(super) fn open(json: &[u8]) -> Result<Tokenizer> {
    let mut parts: Parts = serde_json::from_slice(json).map_err(refusal)?;
    parts.check(json)?;
    let mut rewritten = None;
    if parts.patterns().any(rewrite_patterns) {
        rewritten = Some(with_patterns(json)?);
    }
    let json = rewritten.as_deref().unwrap_or(json);
    let mut library = guarded(PLACE, || Tokenizer::from_bytes(json))?;
    // Files may contain the truncation and padding of earlier use.
    library.with_truncation(None).map_err(refusal)?;
    library.with_padding(None);
    Ok(library)
}

impl Parts {
    /// Refuses what the library would panic about, or overflow its stack on.
    fn check(&self, json: &[u8]) -> Result<()> {
        let longest = self.model.longest;
        if longest > LONGEST_TOKEN {
            let what = format!("model: a token has {longest} bytes; at most {LONGEST_TOKEN} are taken");
            return Err(refusal(what));
        }
        for part in [&self.pre_tokenizer, &self.post_processor] {
            check_part(part)?;
        }
        let Some(prefix) = self.model.continuing_subword_prefix.as_str().filter(|p| !p.is_empty()) else {
            return Ok(());
        };
        let file: Value = serde_json::from_slice(json).map_err(refusal)?;
        let merges = file["model"]["merges"].as_array().map_or(&[][..], Vec::as_slice);
        let second = |merge: &Value| {
            let pair =
                merge.as_str().and_then(|text| text.split_once(' ')).map(|(_, second)| second.to_string());
            pair.or_else(|| merge[1].as_str().map(String::from))
        };
        match merges.iter().filter_map(second).find(|part| !part.starts_with(prefix)) {
            None => Ok(()),
            Some(part) => {
                Err(refusal(format!("a merge has '{part}' without the prefix '{prefix}' of continued words")))
            }
        }
    }

    /// The parts with patterns.
    fn patterns(&mut self) -> impl Iterator<Item = &mut Value> {
        [&mut self.normalizer, &mut self.pre_tokenizer, &mut self.decoder].into_iter()
    }
}

/// Rewrites the patterns of a file for the regex engine of this build.
fn with_patterns(json: &[u8]) -> Result<Vec<u8>> {
    let mut file: Value = serde_json::from_slice(json).map_err(refusal)?;
    for part in ["normalizer", "pre_tokenizer", "decoder"] {
        rewrite_patterns(&mut file[part]);
    }
    serde_json::to_vec(&file).map_err(refusal)
}

fn check_part(part: &Value) -> Result<()> {
    match part["type"].as_str() {
        Some("FixedLength") if part["length"] == 0 => {
            return Err(refusal("pre_tokenizer: FixedLength has a length of 0"));
        }
        Some("TemplateProcessing") => check_template(part)?,
        _ => {}
    }
    for list in ["pretokenizers", "processors"] {
        for part in part[list].as_array().map_or(&[][..], Vec::as_slice) {
            check_part(part)?;
        }
    }
    Ok(())
}

/// Checks that a template names tokens of its own list, and a single text only once.
fn check_template(part: &Value) -> Result<()> {
    for name in ["single", "pair"] {
        for piece in part[name].as_array().map_or(&[][..], Vec::as_slice) {
            let token = piece["SpecialToken"]["id"].as_str();
            if let Some(token) = token.filter(|token| part["special_tokens"].get(token).is_none()) {
                return Err(refusal(format!("post_processor: '{token}' is not among its special_tokens")));
            }
            if name == "single" && piece["Sequence"]["id"] == "B" {
                return Err(refusal("post_processor: single has a second sequence"));
            }
        }
    }
    Ok(())
}

/// A post-processor that puts these tokens before and after a text.
pub(super) fn surround(
    before: Option<(u32, String)>,
    after: Option<(u32, String)>,
) -> Result<PostProcessorWrapper> {
    let token = |token: &Option<(u32, String)>, type_id: u32| {
        token.as_ref().map(|(_, text)| json!({ "SpecialToken": { "id": text, "type_id": type_id } }))
    };
    let surrounded = |name: &str, type_id: u32| {
        let text = json!({ "Sequence": { "id": name, "type_id": type_id } });
        [token(&before, type_id), Some(text), token(&after, type_id)].into_iter().flatten()
    };
    let entry =
        |(id, text): &(u32, String)| (text.clone(), json!({ "id": text, "ids": [id], "tokens": [text] }));
    let tokens: serde_json::Map<String, Value> = before.iter().chain(&after).map(entry).collect();
    let processor = json!({
        "type": "TemplateProcessing",
        "single": surrounded("A", 0).collect::<Vec<_>>(),
        "pair": surrounded("A", 0).chain(surrounded("B", 1)).collect::<Vec<_>>(),
        "special_tokens": tokens,
    });
    serde_json::from_value(processor).map_err(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_would_overflow_the_stack_are_refused() {
        let file = |length: usize| {
            let vocab = json!([["<unk>", 0.0], ["a", -1.0], ["b".repeat(length), -2.0]]);
            let model = json!({ "type": "Unigram", "unk_id": 0, "vocab": vocab });
            serde_json::to_vec(&json!({ "model": model, "added_tokens": [] })).unwrap()
        };
        assert!(open(&file(LONGEST_TOKEN)).is_ok());
        for length in [LONGEST_TOKEN + 1, 1_000_000] {
            let error = open(&file(length)).unwrap_err().to_string();
            assert!(error.contains(&format!("a token has {length} bytes")), "{error}");
        }
    }
}
