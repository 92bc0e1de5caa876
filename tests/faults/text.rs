//! Tokenizers, special tokens and chat templates.

mod limits;
mod templates;
mod tokens;
mod turns;
mod vocabularies;

use crate::common::text::{assistant, sentencepiece, user};
use crate::common::{cli, tiny};
use mixlora::text::{ChatTemplate, Message, ModelText, SpecialTokens, Tokenizer, Vocab};
use serde_json::{Value, json};
use std::path::Path;

/// A folder with a small model: bytes are tokens, 256 is `<|im_start|>`, 257 `<|im_end|>`, 258 `<|pad|>`.
fn model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_text_model(dir.path());
    dir
}

fn write(dir: &Path, name: &str, value: Value) {
    std::fs::write(dir.join(name), value.to_string()).unwrap();
}

/// Changes a JSON file.
fn edit(dir: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(name);
    let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// Gives the byte-level letter of a byte that texts do not use another name.
fn rename(file: &mut Value, letter: &str, name: &str) -> u64 {
    let vocab = file["model"]["vocab"].as_object_mut().unwrap();
    let id = vocab.remove(letter).unwrap();
    vocab.insert(name.into(), id.clone());
    id.as_u64().unwrap()
}

/// Renders a short conversation.
fn render(source: &str) -> Result<String, String> {
    let tokens = SpecialTokens::default().with("bos_token", "<s>").with("eos_token", "</s>");
    let messages = [user("Hi é"), assistant("a\nb")];
    let text = ChatTemplate::new(source).and_then(|t| t.render(&messages, true, &tokens));
    text.map_err(|e| e.to_string())
}

fn open(dir: &Path) -> ModelText {
    ModelText::open(dir).unwrap()
}

/// The text of one conversation with its trained parts in brackets, as `data show` prints it.
fn shown(dir: &Path, sample: &Value, options: &[&str]) -> String {
    let data = dir.join("sample.jsonl");
    std::fs::write(&data, format!("{sample}\n")).unwrap();
    let mut command = cli::mixlora(&["data", "show"]);
    command.arg(&data).arg("--model").arg(dir).args(options);
    let text = cli::output(command, 0).0;
    text.split_once('\n').unwrap().1.trim_end_matches('\n').to_string()
}

fn talk() -> Value {
    json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }] })
}

/// A SentencePiece vocabulary of single letters with these control tokens.
fn scored(control: &[String]) -> Vocab {
    let letters: Vec<String> = "▁abcdefghijklmnopqrstuvwxyz:\n".chars().map(String::from).collect();
    let pieces: Vec<(&str, f32)> = letters.iter().map(|letter| (letter.as_str(), 0.0)).collect();
    sentencepiece(&pieces, control)
}

fn texts(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect()
}
