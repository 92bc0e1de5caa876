//! The families of decoders: each is one file and one word in the list below.
//!
//! A family says how the facts of a file become a [`ModelConfig`]. The facts have the names of `config.json`; those of
//! a GGUF file are brought to the same names first, so that one function serves both.

mod facts;

use super::ModelConfig;
use crate::nn::Activation;

pub(super) use facts::{Facts, RopeFacts};

/// One entry of the list of families.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The class of transformers, which `architectures` in `config.json` names.
    pub class: &'static str,
    /// `general.architecture` in GGUF files; none where none are read.
    pub architecture: Option<&'static str>,
    /// Models that people know of this family.
    pub models: &'static str,
    /// What sets it apart.
    pub features: &'static str,
    /// The activation where a file names none.
    pub(super) activation: Activation,
    /// Makes the description from the facts; it starts from what all families share.
    pub(super) describe: fn(&Facts, &mut ModelConfig) -> crate::Result<()>,
}

macro_rules! families {
    ($($name:ident),+ $(,)?) => {
        $(mod $name;)+
        /// Every family, in the order of the list.
        pub static FAMILIES: &[&Family] = &[$(&$name::FAMILY),+];
    };
}

families! {
    llama, mistral, qwen2, qwen3, gemma2, gemma3, phi3, smollm3, granite, olmo2, glm4, cohere2, starcoder2, mixtral,
    qwen2_moe, qwen3_moe,
}

/// The family of a `model_type`.
///
/// # Errors
/// There is none; the error names the nearest and lists all.
pub(super) fn of_model_type(name: &str) -> Result<&'static Family, String> {
    find(name, "model_type", |f| Some(f.model_type))
}

/// The family of the architecture of a GGUF file.
///
/// # Errors
/// There is none; the error names the nearest and lists all.
pub(super) fn of_architecture(name: &str) -> Result<&'static Family, String> {
    find(name, "architecture", |f| f.architecture)
}

fn find(name: &str, what: &str, key: fn(&Family) -> Option<&'static str>) -> Result<&'static Family, String> {
    if let Some(family) = FAMILIES.iter().find(|f| key(f) == Some(name)) {
        return Ok(family);
    }
    let mut known: Vec<&str> = Vec::new();
    for name in FAMILIES.iter().filter_map(|f| key(f)) {
        if !known.contains(&name) {
            known.push(name);
        }
    }
    let near = near(name, &known).map_or_else(String::new, |n| format!("; the nearest is {n}"));
    let known = known.join(", ");
    Err(format!("{what} '{name}' is not supported{near}; supported are {known}"))
}

/// The known name that shares most of its letters from the start, at least three.
fn near<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let shared = |k: &&&str| k.chars().zip(name.chars()).take_while(|(a, b)| a == b).count();
    known.iter().max_by_key(shared).filter(|k| shared(k) >= 3).copied()
}
