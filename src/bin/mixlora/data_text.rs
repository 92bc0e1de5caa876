//! Options that the data commands share: which tokenizer, which template, what is trained.

use crate::model_path::model_path;
use mixlora::train::TextOptions;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct TextArgs {
    /// A model folder with tokenizer.json and tokenizer_config.json, or a .gguf file.
    #[arg(long, required_unless_present = "tokenizer", value_parser = model_path())]
    pub model: Option<PathBuf>,
    /// A tokenizer.json, instead of the model's.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// A built-in template (chatml) or a Jinja file, instead of the model's.
    #[arg(long)]
    template: Option<String>,
    /// Longest example, in tokens.
    #[arg(long, default_value_t = TextOptions::default().max_length)]
    pub max_length: usize,
    /// Train every token, not only the assistant's.
    #[arg(long)]
    loss_on_all: bool,
    /// Accept assistant turns without an end token.
    #[arg(long)]
    allow_untrained_eos: bool,
}

impl TextArgs {
    pub fn options(&self) -> TextOptions {
        TextOptions {
            tokenizer: self.tokenizer.clone(),
            template: self.template.clone(),
            max_length: self.max_length,
            loss_on_all: self.loss_on_all,
            allow_untrained_eos: self.allow_untrained_eos,
            ..TextOptions::default()
        }
    }
}
