//! Options that the data commands share: which tokenizer, which template, what is trained.

use crate::Failure;
use mixlora::data::{EncodeOptions, Encoder, LossOn};
use mixlora::text::{ChatTemplate, ModelText, Tokenizer};
use mixlora::{Error, Result};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct TextArgs {
    /// A model folder with tokenizer.json and tokenizer_config.json, or a .gguf file.
    #[arg(long, required_unless_present = "tokenizer")]
    pub model: Option<PathBuf>,
    /// A tokenizer.json, instead of the model's.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// A built-in template (chatml) or a Jinja file, instead of the model's.
    #[arg(long)]
    template: Option<String>,
    /// Longest example, in tokens.
    #[arg(long, default_value_t = 1024)]
    max_length: usize,
    /// Train every token, not only the assistant's.
    #[arg(long)]
    loss_on_all: bool,
    /// Accept assistant turns without an end token.
    #[arg(long)]
    allow_untrained_eos: bool,
}

/// What turns text into tokens.
pub struct TextSide {
    pub tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl TextSide {
    pub fn open(args: &TextArgs) -> std::result::Result<Self, Failure> {
        let folder = args.model.as_deref().map(ModelText::open).transpose()?;
        let (tokenizer, template) = folder.map_or((None, None), |f| (Some(f.tokenizer), f.template));
        let tokenizer = match (&args.tokenizer, tokenizer) {
            (Some(file), _) => Tokenizer::from_file(file)?,
            (None, Some(tokenizer)) => tokenizer,
            (None, None) => return Err(Failure::Usage("--model or --tokenizer is needed".into())),
        };
        let template = match &args.template {
            None => template,
            Some(name) => Some(named_template(name)?),
        };
        Ok(TextSide { tokenizer, template })
    }

    pub fn encoder(&self, args: &TextArgs) -> Result<Encoder<'_>> {
        let options = EncodeOptions {
            loss_on: if args.loss_on_all { LossOn::All } else { LossOn::Assistant },
            max_length: args.max_length,
            allow_untrained_eos: args.allow_untrained_eos,
            ..EncodeOptions::default()
        };
        Encoder::new(&self.tokenizer, self.template.as_ref(), options)
    }
}

fn named_template(name: &str) -> Result<ChatTemplate> {
    if let Some(template) = ChatTemplate::named(name) {
        return Ok(template);
    }
    let fail = |what: String| Error::File { path: name.into(), what };
    let text = std::fs::read_to_string(name).map_err(|e| {
        fail(format!("is neither the built-in template chatml nor a file that can be read: {e}"))
    })?;
    ChatTemplate::new(&text).map_err(|e| fail(e.to_string()))
}
