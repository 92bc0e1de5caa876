//! Text in and out of models: tokenizers and chat templates.

mod bpe;
mod clock;
mod folder;
mod spm;
mod template;
mod tokenizer;

pub use folder::TextFolder;
pub use template::{ChatTemplate, Marked, Message, Role};
pub use tokenizer::{Decoder, Piece, Tokenizer, Vocab};
