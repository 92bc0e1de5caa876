//! Text in and out of models: tokenizers, chat templates, answers and conversations.

mod bpe;
mod chat;
mod clock;
mod model_text;
mod reply;
mod spm;
mod template;
mod tokenizer;

pub use chat::{Chat, Turn};
pub use model_text::ModelText;
pub use reply::{Ending, Reply, ReplyOptions, Said};
pub use template::{ChatTemplate, Marked, Message, Role};
pub use tokenizer::{Decoder, Piece, Tokenizer, Vocab};
