//! A model's text side: from the files of a Hugging Face folder, or from the metadata of a GGUF file.

use super::{ChatTemplate, Message, Tokenizer, Vocab};
use crate::io::{GgufFile, read_text};
use crate::model::ModelPlace;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// A tokenizer and, if the model has one, its chat template.
#[derive(Debug)]
pub struct ModelText {
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
}

impl ModelText {
    /// Reads the text side of a model: a folder, or a `.gguf` file, as [`ModelPlace::of`] finds them.
    ///
    /// # Errors
    /// There is no tokenizer, it is of an unknown kind, or a file is malformed.
    pub fn open(path: &Path) -> Result<Self> {
        match ModelPlace::of(path)? {
            ModelPlace::Folder(dir) => Self::from_folder(&dir),
            ModelPlace::Gguf(file) => Self::from_gguf(&GgufFile::open(file)?),
        }
    }

    /// A conversation as the model reads it before it answers.
    ///
    /// # Errors
    /// The model has no chat template, or it refuses the conversation.
    pub fn prompt(&self, messages: &[Message]) -> Result<String> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::config(
                "template",
                "the model has no chat template; name one, for example --template chatml",
            )
        })?;
        self.tokenizer.render(template, messages, true)
    }

    /// Reads the vocabulary and the chat template of a GGUF file's metadata.
    ///
    /// # Errors
    /// Entries are missing, or the tokenizer is of an unknown kind.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let id = |name: &str| file.u32(&key(name)).ok();
        let flag = |name: &str, default: bool| file.bool(&key(name)).unwrap_or(default);
        let model = file.str(&key("model"))?.to_string();
        let spm = model == "llama";
        let vocab = Vocab {
            pre: file.str(&key("pre")).unwrap_or("default").to_string(),
            tokens: file.strings(&key("tokens"))?.to_vec(),
            types: file.i32s(&key("token_type")).unwrap_or_default(),
            scores: file.f32s(&key("scores")).ok().map(<[f32]>::to_vec),
            merges: file.strings(&key("merges")).ok().map(<[String]>::to_vec),
            bos: id("bos_token_id"),
            eos: id("eos_token_id"),
            unk: id("unknown_token_id"),
            pad: id("padding_token_id"),
            add_bos: flag("add_bos_token", spm),
            add_eos: flag("add_eos_token", false),
            add_space_prefix: flag("add_space_prefix", true),
            model,
        };
        let wrap = |e: Error| Error::file(file.path(), e.to_string());
        let tokenizer = Tokenizer::from_vocab(vocab).map_err(wrap)?;
        let template = file.str("tokenizer.chat_template").ok().map(ChatTemplate::new).transpose();
        Ok(ModelText { tokenizer, template: template.map_err(wrap)? })
    }

    /// Reads `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`; the last two may be missing.
    ///
    /// # Errors
    /// `tokenizer.json` is missing, or a file is malformed.
    pub fn from_folder(folder: &Path) -> Result<Self> {
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
            let text = read_text(&path)?;
            let config: Value = serde_json::from_str(&text).map_err(|e| fail(format!("not JSON: {e}")))?;
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
            source = Some(read_text(&path)?);
        }
        let template = source.map(|s| ChatTemplate::new(&s)).transpose();
        let template = template.map_err(|e| Error::file(folder, e.to_string()))?;
        Ok(ModelText { tokenizer, template })
    }
}

/// A template, or the one named `default` of a list of named ones.
fn template_of(value: &Value) -> Option<String> {
    let named = |v: &&Value| v["name"] == "default";
    let value = value.as_array().and_then(|list| list.iter().find(named)).map_or(value, |v| &v["template"]);
    value.as_str().map(String::from)
}
