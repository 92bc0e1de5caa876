//! The tokenizer and chat template of a model, from a Hugging Face folder or the metadata of a GGUF file.

use super::special::TextFiles;
use super::{ChatTemplate, Message, Tokenizer, Vocab};
use crate::io::GgufFile;
use crate::io::gguf::Value;
use crate::model::ModelPlace;
use crate::{Error, Result};
use std::path::Path;

/// A tokenizer and, if the model has one, its chat template. Clones share both.
///
/// ```no_run
/// use mixlora::text::{Message, ModelText, Role};
/// let text = ModelText::open("model".as_ref())?;
/// let prompt = text.prompt(&[Message::new(Role::User, "Hi")])?;
/// let ids = text.tokenizer.encode(&prompt, true)?;
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ModelText {
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
    /// Assumptions that the user should know of.
    pub notes: Vec<String>,
}

impl ModelText {
    /// Combines a tokenizer and a template. Control tokens that the template writes become end tokens if they have the
    /// name of one, because the template may belong to another model.
    pub fn new(mut tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Self {
        let written = tokenizer.add_ends_of(template.as_ref().map_or("", ChatTemplate::source));
        let names =
            |ids: &[u32]| ids.iter().filter_map(|&id| tokenizer.token(id)).collect::<Vec<_>>().join(" ");
        let mut notes = Vec::new();
        if !written.is_empty() {
            let names = names(&written);
            notes.push(format!("{names} ends an answer too, by its name: the chat template writes it, the model's files do not say so"));
        }
        if tokenizer.ends_by_name() && !tokenizer.end_tokens().is_empty() {
            let names = names(&tokenizer.end_tokens());
            notes.push(format!("no file of the model names its end tokens; taken by their names: {names}"));
        }
        ModelText { tokenizer, template, notes }
    }

    /// Reads the tokenizer and template of a model in a folder or a `.gguf` file, as found by [`ModelPlace::of`].
    ///
    /// # Errors
    /// There is no tokenizer, its kind is unknown, or a file is malformed.
    pub fn open(path: &Path) -> Result<Self> {
        match ModelPlace::of(path)? {
            ModelPlace::Folder(dir) => Self::from_folder(&dir),
            ModelPlace::Gguf(file) => Self::from_gguf(&GgufFile::open(file)?),
        }
    }

    /// Renders a conversation up to the start of the model's answer.
    ///
    /// # Errors
    /// The model has no chat template, or the template refuses the conversation.
    pub fn prompt(&self, messages: &[Message]) -> Result<String> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::refused(
                "template",
                "the model has no chat template; name one, for example --template chatml",
            )
        })?;
        self.tokenizer.render(template, messages, true)
    }

    /// Reads the vocabulary and the chat template of a GGUF file's metadata.
    ///
    /// # Errors
    /// Entries are missing or have another type, or the kind of the tokenizer is unknown.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let in_file = |error: Error| Error::file(file.path(), error.to_string());
        let tokenizer = Tokenizer::from_vocab(Vocab::from_gguf(file)?).map_err(in_file)?;
        let key = "tokenizer.chat_template";
        let source = file.get(key).map(|_| file.str(key)).transpose()?;
        let template = source.map(ChatTemplate::new).transpose().map_err(in_file)?;
        Ok(Self::new(tokenizer, template))
    }

    /// Tokenizer and template of a Hugging Face folder as metadata of a GGUF file, for a model with so many rows.
    ///
    /// # Errors
    /// The files cannot be read, or GGUF files have no words for the tokenizer.
    pub fn gguf_metadata(folder: &Path, rows: usize) -> Result<Vec<(String, Value)>> {
        let text = Self::from_folder(folder)?;
        let path = folder.join("tokenizer.json");
        let fail = |what: String| Error::file(&path, what);
        let bytes = std::fs::read(&path).map_err(|error| fail(format!("cannot be read: {error}")))?;
        let json = serde_json::from_slice(&bytes).map_err(|error| fail(format!("is no JSON: {error}")))?;
        let mut all = Vocab::of_json(&json, &text, rows)?.entries();
        let template = text.template.as_ref().map(|template| Value::String(template.source().into()));
        all.extend(template.map(|template| ("tokenizer.chat_template".to_string(), template)));
        Ok(all)
    }

    /// Reads `tokenizer.json` and the optional files beside it: `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json`, `config.json`, `chat_template.json` and `chat_template.jinja`.
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
        let files = TextFiles::read(folder)?;
        let named = tokenizer.name_tokens(files.tokens, files.added);
        named.map_err(|error| Error::file(folder.join("tokenizer_config.json"), error.to_string()))?;
        tokenizer.name_ends(files.ends);
        if let Some(add) = files.add_bos {
            tokenizer.set_add_bos(add);
        }
        if let Some(add) = files.add_eos {
            tokenizer.set_add_eos(add);
        }
        let template = files.template.map(|source| ChatTemplate::new(&source)).transpose();
        let template = template.map_err(|error| Error::file(folder, error.to_string()))?;
        let mut text = Self::new(tokenizer, template);
        text.notes.extend(files.notes);
        Ok(text)
    }
}
