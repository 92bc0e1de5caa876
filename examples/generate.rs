//! Lets a model answer, its text streaming: the tiny base model of this repository, or the one named.
//!
//! ```sh
//! cargo run --release --example generate -- [MODEL [PROMPT]]
//! ```

use mixlora::Device;
use mixlora::adapter::Conversation;
use mixlora::model::{Model, Sampler, Sampling};
use mixlora::text::{Chat, ModelText, ReplyOptions};
use std::io::Write;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny");
    let path = PathBuf::from(args.next().unwrap_or_else(|| tiny.into()));
    let prompt = args.next().unwrap_or_else(|| "Name a colour.".into());

    let text = ModelText::open(&path)?;
    let model = Model::open_f32(&path, &Device::cpu())?;
    let mut chat = Chat::new(&text, Conversation::new(&model, None, 1), None);
    let mut sampler = Sampler::new(Sampling::default())?;
    let options = ReplyOptions { max_tokens: 64, ..ReplyOptions::default() };

    // Each question continues the conversation: the model reads only what is new.
    for question in [prompt.as_str(), "And another one."] {
        let turn = chat.ask(question)?;
        print!("{question} ({} tokens read)\n> ", turn.tokens);
        let mut reply = chat.reply(&mut sampler, &options);
        for piece in reply.by_ref() {
            print!("{}", piece?);
            std::io::stdout().flush()?;
        }
        let said = reply.finish();
        println!("{}", said.rest);
        chat.keep(&said);
    }
    Ok(())
}
