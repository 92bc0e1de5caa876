//! Options that the data commands share: which tokenizer, which template, what is trained.

use crate::model_path::model_path;
use mixlora::data::{Encoder, OnBadImage};
use mixlora::text::{ModelText, PictureTokens};
use mixlora::train::TextOptions;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct TextArgs {
    /// A model folder with tokenizer.json and tokenizer_config.json, or a .gguf file.
    #[arg(long, required_unless_present = "tokenizer", value_parser = model_path())]
    pub model: Option<PathBuf>,
    /// The vision part of a model that has none of its own: a GGUF file (mmproj), or a directory with a vision tower alone.
    #[arg(long, visible_alias = "mmproj", value_name = "PATH")]
    vision: Option<PathBuf>,
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
    #[command(flatten)]
    reading: SampleArgs,
}

/// How samples are read.
#[derive(clap::Args, Clone)]
pub struct SampleArgs {
    /// Keys or columns of the data that stand for others, as question=prompt,answer=completion.
    #[arg(long, value_name = "NAME=KEY", value_delimiter = ',')]
    pub columns: Vec<String>,
    /// Folder that relative paths of pictures are of; by default that of the data file.
    #[arg(long, value_name = "DIR")]
    pub image_folder: Option<PathBuf>,
    /// What becomes of samples with a picture that cannot be read: error, or skip to leave them out and count them.
    #[arg(long, value_name = "WHAT", value_parser = ["error", "skip"], default_value = "error")]
    on_bad_image: String,
}

impl SampleArgs {
    pub fn skips(&self) -> bool {
        self.on_bad_image == "skip"
    }

    /// Text options that say so; where nothing is said they stay as they are.
    pub fn over(&self, options: TextOptions) -> TextOptions {
        let on_bad_image = if self.skips() { OnBadImage::Skip } else { options.on_bad_image };
        let image_folder = self.image_folder.clone().or(options.image_folder.clone());
        let columns = if self.columns.is_empty() { options.columns.clone() } else { self.columns.clone() };
        TextOptions { columns, image_folder, on_bad_image, ..options }
    }
}

impl TextArgs {
    pub fn options(&self) -> TextOptions {
        self.reading.over(TextOptions {
            tokenizer: self.tokenizer.clone(),
            template: self.template.clone(),
            max_length: self.max_length,
            loss_on_all: self.loss_on_all,
            allow_untrained_eos: self.allow_untrained_eos,
            ..TextOptions::default()
        })
    }

    /// What turns samples into examples, with the pictures of a model that sees.
    pub fn encoder(&self, side: &ModelText) -> mixlora::Result<Encoder> {
        let of = |model| PictureTokens::of(model, self.vision.as_deref(), &side.tokenizer);
        let pictures = self.model.as_deref().map_or(Ok(None), of)?;
        self.options().encoder(side)?.with_pictures(pictures)
    }

    /// The text side of the model.
    pub fn side(&self) -> mixlora::Result<ModelText> {
        self.options().open(self.model.as_deref(), self.vision.as_deref())
    }
}

/// Where features of pictures are kept.
#[derive(clap::Args)]
pub struct FeatureArgs {
    /// Bytes of pictures' features that stay in memory, for example 600MiB; more go to files. 8GiB where it is not given.
    #[arg(long, value_name = "SIZE")]
    pub feature_memory: Option<String>,
    /// A folder where the features that the tower makes of pictures are kept for other runs, which then do not compute them.
    #[arg(long, value_name = "DIR")]
    pub feature_cache: Option<PathBuf>,
}

impl FeatureArgs {
    /// These over the options.
    pub fn over(&self, options: TextOptions) -> TextOptions {
        TextOptions {
            feature_memory: self.feature_memory.clone().unwrap_or(options.feature_memory),
            feature_cache: self.feature_cache.clone().or(options.feature_cache),
            ..options
        }
    }
}
