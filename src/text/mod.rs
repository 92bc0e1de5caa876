//! Text in and out of models: tokenizers and chat templates.

mod bpe;
mod clock;
mod model_text;
mod spm;
mod template;
mod tokenizer;

pub use model_text::ModelText;
pub use template::{ChatTemplate, Marked, Message, Role};
pub use tokenizer::{Decoder, Piece, Tokenizer, Vocab};
