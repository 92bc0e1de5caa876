//! The text files of a model folder in the Hugging Face layout.

use super::{ChatTemplate, Tokenizer};
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// A tokenizer and, if the model has one, its chat template.
#[derive(Debug)]
pub struct TextFolder {
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
}

impl TextFolder {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`; the last two may be missing.
    ///
    /// # Errors
    /// `tokenizer.json` is missing, or a file is malformed.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            let what = "there is no tokenizer.json in this folder".to_string();
            return Err(Error::file(folder, what));
        }
        let mut tokenizer = Tokenizer::from_file(&path)?;
        let path = folder.join("tokenizer_config.json");
        let mut source = None;
        if path.is_file() {
            let fail = |what: String| Error::file(&path, what);
            let bytes = std::fs::read(&path).map_err(|e| fail(format!("cannot be read: {e}")))?;
            let config: Value = serde_json::from_slice(&bytes).map_err(|e| fail(format!("not JSON: {e}")))?;
            let token = |key: &str| {
                let value = &config[key];
                value.as_str().or_else(|| value["content"].as_str())
            };
            tokenizer
                .set_tokens(token("bos_token"), token("eos_token"), token("pad_token"))
                .map_err(|e| fail(e.to_string()))?;
            if let Some(add) = config["add_bos_token"].as_bool() {
                tokenizer.set_add_bos(add);
            }
            source = template_of(&config["chat_template"]);
        }
        let path = folder.join("chat_template.jinja");
        if path.is_file() {
            let text = std::fs::read_to_string(&path);
            source = Some(text.map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?);
        }
        let template = source.map(|s| ChatTemplate::new(&s)).transpose();
        let template = template.map_err(|e| Error::file(folder, e.to_string()))?;
        Ok(TextFolder { tokenizer, template })
    }
}

/// A template, or the one named `default` of a list of named ones.
fn template_of(value: &Value) -> Option<String> {
    let named = |v: &&Value| v["name"] == "default";
    let value = value.as_array().and_then(|list| list.iter().find(named)).map_or(value, |v| &v["template"]);
    value.as_str().map(String::from)
}
