//! The vocabulary of a `tokenizer.json` in the form of GGUF metadata.

use super::pre_tokenizers::name_of;
use super::vocab::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER};
use super::{ModelText, Tokenizer, Vocab};
use crate::io::gguf::{Array, Value as Entry};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;

/// The text of tokens that a model has rows for and no text.
const PADDING: &str = "[PAD";
/// Parts of the names of tokens that end a turn, and a message within one.
const TURN_ENDS: [&str; 4] = ["eot", "im_end", "end_of_turn", "<|end|>"];
const MESSAGE_ENDS: [&str; 1] = ["eom"];
/// What both forms of a tokenizer must read alike: words, numbers, spaces, lines, signs, other scripts, bytes.
const SAMPLES: [&str; 8] = [
    "Hello world, it's 2024: 1234567 apples!",
    "  leading   and   inner spaces  ",
    "line one\nline two\r\n\n\n\tindented\n",
    "don't I'LL we've THEY'RE x_y-z (a+b)*c == {d: [1, 2.5e-3]};",
    "Größe naïve façade ČĎĚ ångström",
    "Привет мир, こんにちは世界 你好吗 안녕하세요 مرحبا",
    "emoji 🙂👩‍👩‍👧 and \u{1F9EA}, zero\u{200b}width, nbsp\u{a0}here",
    "https://example.org/path?q=1&r=%20#top <html><b>bold</b></html>",
];

fn refuse<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::refused("tokenizer.json", what))
}

impl Vocab {
    /// The vocabulary of a `tokenizer.json` with byte-level BPE, or with BPE over SentencePiece's words, for a model with so
    /// many rows. `text` is what was read of it.
    ///
    /// # Errors
    /// It is of another kind, GGUF files have no name for how it splits text, or the form of GGUF files would read text
    /// otherwise.
    pub(super) fn of_json(json: &Value, text: &ModelText, rows: usize) -> Result<Self> {
        let model = &json["model"];
        if model["type"].as_str().is_some_and(|kind| kind != "BPE") || !model["merges"].is_array() {
            return refuse(format!("is of type {}; GGUF files are written of BPE", model["type"]));
        }
        let spm = model["byte_fallback"] == true;
        let tokenizer = &text.tokenizer;
        let (tokens, types) = tokens(json, rows, spm)?;
        let merges = merges(&model["merges"])?;
        let mut ends = tokenizer.end_tokens();
        ends.retain(|end| Some(*end) != tokenizer.eos());
        let unk = model["unk_token"].as_str().and_then(|token| tokenizer.token_id(token));
        let vocab = Vocab {
            model: if spm { "llama" } else { "gpt2" }.into(),
            pre: if spm {
                "default".into()
            } else {
                let patterns = patterns(&json["pre_tokenizer"])?;
                let whole = model["ignore_merges"] == true;
                name_of(&patterns, whole).map_or_else(
                    || refuse("splits text in a way that GGUF files have no name for"),
                    |name| Ok(name.to_string()),
                )?
            },
            scores: spm.then(|| scores(&tokens, &types, &merges)),
            merges: (!spm).then(|| merges.iter().map(|[left, right]| format!("{left} {right}")).collect()),
            bos: tokenizer.bos(),
            eos: tokenizer.eos().or(ends.first().copied()),
            unk,
            pad: Some(tokenizer.pad()).filter(|pad| Some(*pad) != tokenizer.eos()),
            ends,
            add_bos: tokenizer.add_bos(),
            add_eos: tokenizer.add_eos(),
            add_space_prefix: prepends(json),
            tokens,
            types,
        };
        vocab.check_against(tokenizer)?;
        Ok(vocab)
    }

    /// Refuses a vocabulary that reads texts otherwise than the tokenizer that it was made of.
    fn check_against(&self, tokenizer: &Tokenizer) -> Result<()> {
        let written = Tokenizer::from_vocab(self.clone())?;
        for sample in SAMPLES {
            if written.encode(sample, true)? != tokenizer.encode(sample, true)? {
                return refuse(format!("reads {sample:?} otherwise than a GGUF file can say"));
            }
        }
        Ok(())
    }

    /// The end token that is called like one of these. What ends a text is no end of a turn.
    fn end_named(&self, parts: &[&str]) -> Option<u32> {
        let named = |id: &&u32| {
            let token = self.tokens.get(**id as usize);
            token.is_some_and(|token| parts.iter().any(|part| token.contains(part)))
        };
        self.ends.iter().find(named).copied()
    }

    /// As entries of metadata.
    pub(super) fn entries(&self) -> Vec<(String, Entry)> {
        let ids = [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("unknown_token_id", self.unk),
            ("padding_token_id", self.pad),
            ("eot_token_id", self.end_named(&TURN_ENDS)),
            ("eom_token_id", self.end_named(&MESSAGE_ENDS)),
        ];
        let spm = self.model == "llama";
        let mut all = vec![
            ("model", Entry::String(self.model.clone())),
            ("pre", Entry::String(self.pre.clone())),
            ("tokens", Entry::Array(Array::String(self.tokens.clone()))),
            ("token_type", Entry::Array(Array::I32(self.types.clone()))),
        ];
        all.extend(self.scores.clone().map(|scores| ("scores", Entry::Array(Array::F32(scores)))));
        all.extend(self.merges.clone().map(|merges| ("merges", Entry::Array(Array::String(merges)))));
        all.extend(ids.into_iter().filter_map(|(name, id)| Some((name, Entry::U32(id?)))));
        all.push(("add_bos_token", Entry::Bool(self.add_bos)));
        all.push(("add_eos_token", Entry::Bool(self.add_eos)));
        all.extend(spm.then_some(("add_space_prefix", Entry::Bool(self.add_space_prefix))));
        all.into_iter().map(|(name, entry)| (format!("tokenizer.ggml.{name}"), entry)).collect()
    }
}

/// Tokens by their numbers, as many as the model has rows, and their kinds.
fn tokens(json: &Value, rows: usize, spm: bool) -> Result<(Vec<String>, Vec<i32>)> {
    let mut tokens: Vec<String> = (0..rows).map(|row| format!("{PADDING}{row}]")).collect();
    let mut types = vec![UNUSED; rows];
    let Some(vocab) = json["model"]["vocab"].as_object() else { return refuse("has no vocabulary") };
    let mut put = |token: &str, id: &Value, kind: i32| {
        let Some(id) = id.as_u64().and_then(|id| usize::try_from(id).ok()) else {
            return refuse(format!("token {token:?} has no number"));
        };
        // Of added tokens without a row no text can be made.
        if id < rows {
            (tokens[id], types[id]) = (token.to_string(), kind);
        }
        Ok(())
    };
    let unk = json["model"]["unk_token"].as_str();
    for (token, id) in vocab {
        let byte = spm && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        let kind = if Some(token.as_str()) == unk {
            UNKNOWN
        } else if byte {
            BYTE
        } else {
            NORMAL
        };
        put(token, id, kind)?;
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let Some(token) = added["content"].as_str() else {
            return refuse("has an added token without content");
        };
        let kind = if Some(token) == unk {
            UNKNOWN
        } else if added["special"] == true {
            CONTROL
        } else {
            USER
        };
        put(token, &added["id"], kind)?;
    }
    Ok((tokens, types))
}

/// Pairs in the order in which they are merged.
fn merges(json: &Value) -> Result<Vec<[String; 2]>> {
    let pair = |merge: &Value| -> Option<[String; 2]> {
        if let Some(text) = merge.as_str() {
            let (left, right) = text.split_once(' ')?;
            return Some([left.into(), right.into()]);
        }
        let text = |i: usize| merge.get(i)?.as_str().map(String::from);
        Some([text(0)?, text(1)?])
    };
    let all: Option<Vec<_>> = json.as_array().into_iter().flatten().map(pair).collect();
    all.map_or_else(|| refuse("has a merge that is not a pair"), Ok)
}

/// Scores with which pairs are joined in the order of the merges: the earlier one is made, the higher.
fn scores(tokens: &[String], types: &[i32], merges: &[[String; 2]]) -> Vec<f32> {
    let mut first: HashMap<String, usize> = HashMap::new();
    for (rank, [left, right]) in merges.iter().enumerate() {
        first.entry(format!("{left}{right}")).or_insert(rank);
    }
    let score = |(token, kind): (&String, &i32)| match first.get(token) {
        Some(&rank) => -(rank as f32),
        None if *kind == NORMAL => -(merges.len() as f32),
        None => 0.0,
    };
    tokens.iter().zip(types).map(score).collect()
}

/// The regular expressions by which text is split, one after the other.
fn patterns(step: &Value) -> Result<Vec<String>> {
    match step["type"].as_str() {
        Some("Sequence") => {
            let steps = step["pretokenizers"].as_array().into_iter().flatten();
            Ok(steps.map(patterns).collect::<Result<Vec<_>>>()?.concat())
        }
        Some("Split") if step["behavior"] == "Isolated" && step["invert"] != true => {
            match step["pattern"]["Regex"].as_str() {
                Some(pattern) => Ok(vec![pattern.to_string()]),
                None => refuse("splits text at strings, which GGUF files have no name for"),
            }
        }
        Some("Digits") if step["individual_digits"] == true => Ok(vec![r"\p{N}".into()]),
        Some("ByteLevel") if step["add_prefix_space"] == true => {
            refuse("puts a space before text, which GGUF files of byte-level BPE have no word for")
        }
        Some("ByteLevel") if step["use_regex"] == false => Ok(Vec::new()),
        Some("ByteLevel") => Ok(vec![super::pre_tokenizers::GPT2.into()]),
        _ => refuse(format!("splits text by {}, which GGUF files have no name for", step["type"])),
    }
}

/// Whether a space is put before text.
fn prepends(json: &Value) -> bool {
    let normalizers = json["normalizer"]["normalizers"].as_array().into_iter().flatten();
    let prepend = normalizers.chain([&json["normalizer"]]).any(|step| step["type"] == "Prepend");
    let steps = json["pre_tokenizer"]["pretokenizers"].as_array().into_iter().flatten();
    let metaspace = |step: &Value| step["type"] == "Metaspace" && step["prepend_scheme"] != "never";
    prepend || steps.chain([&json["pre_tokenizer"]]).any(metaspace)
}
