//! Tensors under the names of Hugging Face's `...ForCausalLM`, whatever class or wrapper they were saved from.

use crate::io::Checkpoint;
use crate::{Error, Result};
use std::collections::BTreeMap;

const EMBEDDING: &str = "embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// Parts of names that wrappers of PyTorch put in, at any place.
const WRAPPERS: [&str; 4] = ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// The name of each tensor in the file by the name that is looked for; empty where they are the same.
pub(super) type Names = BTreeMap<String, String>;

/// Finds the names. What stands before `embed_tokens.weight` stands before all the others but the head's, and takes
/// the place of `model.`: nothing for a bare `LlamaModel`, `language_model.model.` for a part of a larger model.
pub(super) fn find(file: &Checkpoint) -> Result<Names> {
    let mut names = Names::new();
    if file.has(&format!("model.{EMBEDDING}")) {
        return Ok(names);
    }
    let plain = |name: &str| {
        let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
        parts.join(".")
    };
    let is = |name: &str, last: &str| {
        name.strip_suffix(last).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    let prefix = |name: &str| plain(name).strip_suffix(EMBEDDING).map(String::from);
    let mut embeddings = file.names().filter(|name| is(name, EMBEDDING));
    let (Some(embedding), None) = (embeddings.next(), embeddings.next()) else { return Ok(names) };
    let Some(prefix) = prefix(embedding) else { return Ok(names) };
    for stored in file.names() {
        let name = plain(stored);
        let wanted = match name.strip_prefix(&prefix) {
            _ if is(&name, HEAD) => HEAD.to_string(),
            Some(rest) => format!("model.{rest}"),
            None => continue,
        };
        if let Some(other) = names.insert(wanted.clone(), stored.to_string()) {
            let what = format!("tensors '{other}' and '{stored}' would both be '{wanted}'");
            return Err(Error::file(file.path(), what));
        }
    }
    Ok(names)
}
