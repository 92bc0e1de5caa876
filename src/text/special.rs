//! Special tokens in the files of a Hugging Face folder, read in the order of transformers.

use crate::io::{read_json, read_text};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokenizers::AddedToken;

/// The names of special tokens in transformers, in its order.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const MORE: &str = "additional_special_tokens";

/// Special tokens as text, by their names in chat templates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    named: BTreeMap<String, String>,
    additional: Vec<String>,
}

impl SpecialTokens {
    /// Adds or replaces a token named `bos_token`, `eos_token`, `pad_token` and so on.
    pub fn with(mut self, name: &str, text: impl Into<String>) -> Self {
        self.named.insert(name.into(), text.into());
        self
    }
    /// The text of a named token.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }
    /// All names with their texts.
    pub fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }
    /// The tokens without a name.
    pub fn additional(&self) -> &[String] {
        &self.additional
    }
}

/// The content of the files beside a `tokenizer.json`.
#[derive(Default)]
pub(super) struct TextFiles {
    pub tokens: SpecialTokens,
    /// Tokens of `added_tokens_decoder`, in the order of their ids.
    pub added: Vec<AddedToken>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub template: Option<String>,
    /// Ids that end an answer.
    pub ends: Vec<u32>,
    pub notes: Vec<String>,
}

impl TextFiles {
    /// Reads a folder; each of the files may be missing.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let mut files = Self::default();
        let config = Fields::read(folder, "tokenizer_config.json")?;
        let mut has_decoder = false;
        if let Some(config) = &config {
            config.tokens(&mut files.tokens)?;
            files.add_bos = config.flag("add_bos_token")?;
            files.add_eos = config.flag("add_eos_token")?;
            let decoder = config.added()?;
            has_decoder = decoder.is_some();
            files.added = decoder.unwrap_or_default();
            files.template = config.template(&mut files.notes)?;
        }
        // Older versions of transformers keep the tokens in this file.
        if !has_decoder && let Some(map) = Fields::read(folder, "special_tokens_map.json")? {
            map.tokens(&mut files.tokens)?;
        }
        let generation = Fields::read(folder, "generation_config.json")?;
        files.ends = generation.map_or(Ok(None), |fields| fields.ids("eos_token_id"))?.unwrap_or_default();
        if files.ends.is_empty()
            && let Some(config) = Fields::read(folder, "config.json")?
        {
            files.ends = config.ids("eos_token_id")?.unwrap_or_default();
        }
        // Older versions keep the template of a model that sees in this file.
        if let Some(fields) = Fields::read(folder, "chat_template.json")? {
            files.template = fields.template(&mut files.notes)?.or(files.template);
        }
        let path = folder.join("chat_template.jinja");
        if path.is_file() {
            files.template = Some(read_text(&path)?);
        }
        Ok(files)
    }
}

/// The fields of a JSON file, each of which must have its type.
struct Fields {
    path: PathBuf,
    map: Map<String, Value>,
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The text of a token: itself, or the content of an object.
fn text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

impl Fields {
    /// Reads a file; none if it does not exist.
    fn read(folder: &Path, name: &str) -> Result<Option<Self>> {
        let path = folder.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        match read_json(&path)? {
            Value::Object(map) => Ok(Some(Fields { path, map })),
            other => Err(Error::file(&path, format!("expected an object, not {}", kind(&other)))),
        }
    }

    fn fail(&self, place: &str, value: &Value, expected: &str) -> Error {
        Error::file(&self.path, format!("at {place}: expected {expected}, not {}", kind(value)))
    }

    /// A field that is present and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, place: &str, value: &Value) -> Result<String> {
        let expected = "a string or an object with content";
        text(value).map(String::from).ok_or_else(|| self.fail(place, value, expected))
    }

    /// Adds the named tokens; they replace those of earlier files with the same names.
    fn tokens(&self, tokens: &mut SpecialTokens) -> Result<()> {
        for name in NAMES {
            if let Some(value) = self.get(name) {
                tokens.named.insert(name.into(), self.text(name, value)?);
            }
        }
        if let Some(value) = self.get(MORE) {
            let list = value.as_array().ok_or_else(|| self.fail(MORE, value, "a list of tokens"))?;
            let item = |(index, item): (usize, &Value)| self.text(&format!("{MORE}[{index}]"), item);
            tokens.additional = list.iter().enumerate().map(item).collect::<Result<_>>()?;
        }
        // The model's own names; newer files have a list without names instead.
        match self.get("extra_special_tokens") {
            Some(Value::Object(map)) => {
                for (name, value) in map {
                    let text = self.text(&format!("extra_special_tokens.{name}"), value)?;
                    tokens.named.insert(name.clone(), text);
                }
            }
            Some(Value::Array(list)) => {
                for (index, value) in list.iter().enumerate() {
                    tokens.additional.push(self.text(&format!("extra_special_tokens[{index}]"), value)?);
                }
            }
            Some(other) => return Err(self.fail("extra_special_tokens", other, "an object or a list")),
            None => {}
        }
        Ok(())
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        let flag = |value: &Value| value.as_bool().ok_or_else(|| self.fail(key, value, "true or false"));
        self.get(key).map(flag).transpose()
    }

    /// One id or a list of ids.
    fn ids(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| self.fail(key, value, "the id of a token, or a list of ids"))
        };
        let ids = |value: &Value| match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => Ok(vec![id(one)?]),
        };
        self.get(key).map(ids).transpose()
    }

    fn added(&self) -> Result<Option<Vec<AddedToken>>> {
        let key = "added_tokens_decoder";
        let Some(value) = self.get(key) else { return Ok(None) };
        let entries =
            value.as_object().ok_or_else(|| self.fail(key, value, "an object of tokens by their ids"))?;
        let mut tokens = BTreeMap::new();
        for (id, value) in entries {
            let place = format!("{key}.{id}");
            let number: u32 =
                id.parse().map_err(|_| self.fail(&place, value, "the id of a token as its name"))?;
            let content = self.text(&place, value)?;
            let flag = |name: &str, absent: bool| value[name].as_bool().unwrap_or(absent);
            let special = flag("special", false);
            let token = AddedToken::from(content, special)
                .single_word(flag("single_word", false))
                .lstrip(flag("lstrip", false))
                .rstrip(flag("rstrip", false))
                .normalized(flag("normalized", !special));
            tokens.insert(number, token);
        }
        Ok(Some(tokens.into_values().collect()))
    }

    /// The template, or the one named `default` in a list of named templates.
    fn template(&self, notes: &mut Vec<String>) -> Result<Option<String>> {
        let key = "chat_template";
        let Some(value) = self.get(key) else { return Ok(None) };
        let Value::Array(list) = value else {
            let template = value
                .as_str()
                .ok_or_else(|| self.fail(key, value, "a string or a list of named templates"))?;
            return Ok(Some(template.into()));
        };
        let mut names = Vec::new();
        for (index, item) in list.iter().enumerate() {
            let field = |name: &str| {
                let place = format!("{key}[{index}].{name}");
                item[name].as_str().ok_or_else(|| self.fail(&place, &item[name], "a string"))
            };
            if field("name")? == "default" {
                return Ok(Some(field("template")?.into()));
            }
            names.push(field("name")?);
        }
        if !names.is_empty() {
            let names = names.join(", ");
            notes.push(format!(
                "none of the model's chat templates ({names}) is named default: it has none here"
            ));
        }
        Ok(None)
    }
}
