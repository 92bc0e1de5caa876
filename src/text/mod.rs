//! Text in and out of models: tokenizers, chat templates, answers and conversations.
//!
//! [`ModelText`] opens the tokenizer and the chat template of a model.
//!
//! ```
//! use mixlora::text::{ChatTemplate, Message, Role, SpecialTokens};
//! let template = ChatTemplate::named("chatml").unwrap();
//! let messages = [Message::new(Role::User, "Hi")];
//! let prompt = template.render(&messages, true, &SpecialTokens::default())?;
//! assert_eq!(prompt, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
//! # Ok::<(), mixlora::Error>(())
//! ```

mod bpe;
mod chat;
mod decoder;
mod jinja;
mod library;
mod longest;
mod model_text;
mod modelfile;
mod names;
mod picture_tokens;
mod pictures;
mod piece;
mod pre_tokenizers;
mod regex;
mod reply;
mod sight;
mod special;
mod spm;
mod template;
mod tokenizer;
mod vocab;
mod written_vocab;

pub use chat::{Chat, Turn};
pub use decoder::Decoder;
pub use model_text::ModelText;
pub use picture_tokens::PictureTokens;
pub use pictures::{Expanded, PictureText, without_pictures};
pub use piece::Piece;
pub use reply::{Ending, Reply, ReplyOptions, Said};
pub use sight::{Seen, Sight};
pub use special::SpecialTokens;
pub(crate) use template::ContentPlace;
pub use template::{ChatTemplate, Marked, Message, PICTURE, Role};
pub use tokenizer::Tokenizer;
pub use vocab::Vocab;
