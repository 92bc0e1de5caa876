//! One target for each parser: seeds, words of its format, and a function that reads bytes.

mod bytes;
#[path = "../../../tests/common/gguf.rs"]
#[allow(dead_code)]
mod gguf;
mod json;
mod picture;
#[path = "../../../tests/common/pth.rs"]
#[allow(dead_code)]
mod pth;
mod stored;
mod text;
#[path = "../../../tests/common/tiny.rs"]
#[allow(dead_code)]
mod tiny;

use crate::mutate::{Mutator, Random, frame};
use std::path::{Path, PathBuf};

/// What a parser says; the text of an error is made too.
pub type Read = Result<(), String>;

/// A target that is open.
pub struct Case {
    /// Inputs that the parser takes.
    pub seeds: Vec<Vec<u8>>,
    pub parse: Box<dyn FnMut(&[u8]) -> Read>,
}

/// A parser and what its inputs are made of.
pub struct Target {
    pub name: &'static str,
    /// Processor time that an input may take.
    pub seconds: u64,
    pub words: &'static [&'static str],
    /// Inputs begin as safetensors files do: with the length of a header in JSON.
    pub framed: bool,
    /// Opens it in an empty folder.
    pub open: fn(&Path) -> Case,
}

pub const ALL: &[Target] = &[
    bytes::SAFETENSORS,
    bytes::GGUF,
    bytes::PTH,
    bytes::JSONL,
    bytes::TABLE,
    json::CONFIG,
    json::RUN,
    json::JSON,
    json::TOML,
    json::MANIFEST,
    text::TEMPLATE,
    text::TOKENIZER,
    text::VOCABULARY,
    stored::ADAPTER,
    stored::REFERENCE,
    picture::PICTURE,
    picture::PROCESSOR,
];

impl Target {
    pub fn mutator(&self, case: &Case) -> Mutator {
        Mutator { seeds: case.seeds.clone(), words: self.words }
    }

    /// The input of a number. Of framed ones most have a length that is right, or else few would be read further.
    pub fn input(&self, mutator: &Mutator, seed: u64, number: u64) -> Vec<u8> {
        let mut random = Random::new(seed, number);
        let mut input = mutator.input(&mut random);
        if self.framed && random.below(8) > 0 {
            frame(&mut input);
        }
        input
    }
}

/// A file of the main package.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path).expect("a file of the tree or of the target itself")
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("the scratch folder can be written");
}

fn said(result: mixlora::Result<()>) -> Read {
    result.map_err(|e| e.to_string())
}
