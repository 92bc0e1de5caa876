//! Options of commands that use a model: model, adapter and sampling.

use crate::device_args::{CheckArgs, DeviceArgs, WeightsArgs};
use crate::model_path::model_path;
use crate::{Failure, out};
use mixlora::Stream;
use mixlora::adapter::{Bank, Conversation};
use mixlora::data::Condition;
use mixlora::mixture::{ConditionKind, DecodeRoute};
use mixlora::model::vision::VisionPlace;
use mixlora::model::{LoadOptions, Model, Sampler, Sampling};
use mixlora::text::{ModelText, PictureTokens, ReplyOptions, Seen, Sight};
use mixlora::train::{TextOptions, condition_vector};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

#[derive(clap::Args)]
pub struct ModelArgs {
    /// A .gguf file, a Hugging Face directory, or a file in one.
    #[arg(long, value_parser = model_path())]
    pub model: PathBuf,
    /// The vision part of a model that has none of its own: a GGUF file (mmproj), or a directory with a vision tower alone.
    #[arg(long, visible_alias = "mmproj", value_name = "PATH")]
    pub vision: Option<PathBuf>,
    /// An adapter directory, or the folder of a training run (its best checkpoint is taken). May be given several times:
    /// what each adds to the model is summed.
    #[arg(long)]
    adapter: Vec<PathBuf>,
    /// Factor on what an adapter adds, 1 where it is not given; of several adapters, one for each in their order.
    #[arg(long, value_name = "SCALE", requires = "adapter", allow_hyphen_values = true)]
    adapter_scale: Vec<f32>,
    /// A built-in template (chatml) or a Jinja file, instead of the model's.
    #[arg(long)]
    template: Option<String>,
    /// How generated tokens are routed: freeze_prefill or per_step; the adapter's own where it is not given.
    #[arg(long, value_name = "ROUTE")]
    decode_route: Option<DecodeRoute>,
    #[command(flatten)]
    weights: WeightsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    checks: CheckArgs,
}

/// What is said of a prompt besides its text.
pub struct About {
    task: Option<String>,
    condition: Option<Vec<f32>>,
}

/// An opened model.
pub struct Opened {
    pub text: ModelText,
    pub model: Arc<Model>,
    pub bank: Bank,
    pub route: Option<DecodeRoute>,
    /// The paths of the model and of a vision part beside it.
    pub place: (PathBuf, Option<PathBuf>),
    /// Whether adapters of other weights are taken.
    pub force: bool,
    /// The vision part, once it was asked for.
    pub sight: OnceLock<Arc<Sight>>,
}

impl ModelArgs {
    pub fn open(&self) -> Result<Opened, Failure> {
        let device = self.device.open()?;
        let options = TextOptions { template: self.template.clone(), ..TextOptions::default() };
        let text = options.open(Some(&self.model), self.vision.as_deref())?;
        out::notes(&text.notes);
        let model = self.checks.model(&self.model, &device, self.weights.weights())?;
        text.tokenizer.check_rows(model.config().vocab_size)?;
        let bank = self.bank(&model)?;
        let place = (self.model.clone(), self.vision.clone());
        Ok(Opened {
            text,
            model,
            bank,
            place,
            route: self.decode_route,
            force: self.checks.force,
            sight: OnceLock::new(),
        })
    }

    /// One adapter, as one of several that are compared.
    pub fn open_adapter(&self, dir: &Path, model: &Model) -> Result<Bank, Failure> {
        Ok(self.checks.adapter(dir, model)?.into())
    }

    /// The adapters with their scales.
    fn bank(&self, model: &Model) -> Result<Bank, Failure> {
        let scales = &self.adapter_scale;
        if scales.len() > self.adapter.len() {
            let what = format!("{} scales for {} adapters", scales.len(), self.adapter.len());
            return Err(Failure::Usage(format!("--adapter-scale: {what}")));
        }
        let scales = scales.iter().copied().chain(std::iter::repeat(1.0));
        let mut bank = Bank::default();
        for (dir, scale) in self.adapter.iter().zip(scales) {
            let adapter = self.checks.adapter(dir, model)?;
            bank = bank.with(adapter, scale).map_err(|e| Failure::Usage(format!("--adapter-{e}")))?;
        }
        Ok(bank)
    }
}

#[derive(clap::Args)]
pub struct PictureArgs {
    /// A picture that the prompt is about; may be given several times. A model that sees is a directory with a vision
    /// tower, such as LLaVA or SmolVLM.
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
}

/// Pictures, and the part of a model that sees them.
pub struct Shown {
    pub sight: Arc<Sight>,
    pub pictures: Vec<Seen>,
}

impl PictureArgs {
    /// The vision part of a model and the pictures, where any are given; what is odd about one goes to stderr.
    pub fn open(&self, opened: &Opened) -> Result<Option<Shown>, Failure> {
        if self.images.is_empty() {
            return Ok(None);
        }
        let sight = opened.sight()?;
        let open = |image: &PathBuf| open_picture(&sight, image);
        let pictures = self.images.iter().map(open).collect::<mixlora::Result<_>>()?;
        Ok(Some(Shown { sight, pictures }))
    }
}

/// A picture file as a model sees it; what is odd about it goes to stderr.
pub fn open_picture(sight: &Sight, image: &Path) -> mixlora::Result<Seen> {
    let (seen, notes) = sight.open_picture(image)?;
    notes.iter().for_each(|what| out::note(&format!("note: {}: {what}", image.display())));
    Ok(seen)
}

impl Opened {
    /// The same model with other adapters.
    pub fn with_bank(&self, bank: Bank) -> Self {
        Opened {
            bank,
            text: self.text.clone(),
            model: self.model.clone(),
            place: self.place.clone(),
            sight: OnceLock::new(),
            ..*self
        }
    }

    /// How pictures stand among the tokens of the model, where it sees.
    pub fn picture_tokens(&self) -> mixlora::Result<Option<PictureTokens>> {
        let (model, vision) = &self.place;
        PictureTokens::of(model, vision.as_deref(), &self.text.tokenizer)
    }

    /// The vision part of the model, with the projector that an adapter was trained with.
    pub fn sight(&self) -> mixlora::Result<Arc<Sight>> {
        if let Some(sight) = self.sight.get() {
            return Ok(sight.clone());
        }
        let (model, vision) = &self.place;
        let sight = open_sight(model, vision.as_deref(), &self.model, &self.text)?;
        sight.take_from(&self.bank, self.force)?;
        let mut parts = self.bank.adapters().iter().filter_map(|(adapter, _)| adapter.vision());
        let own = parts.any(|part| !part.projector().is_empty());
        if let (Some(VisionPlace::Tower(dir)), false) = (VisionPlace::of(model, vision.as_deref())?, own) {
            out::note(&format!(
                "note: {} is a tower alone: its projector is drawn at random, as no adapter has one",
                dir.display()
            ));
        }
        Ok(self.sight.get_or_init(|| Arc::new(sight)).clone())
    }

    /// Starts a conversation, of what the user said of it.
    pub fn conversation(&self, about: &About) -> Result<Conversation, Failure> {
        let task = about.task.as_deref();
        let conversation =
            Conversation::new(&self.model, &self.bank, 1).with_route(self.route).with_tasks([task]);
        match &about.condition {
            Some(condition) => Ok(conversation.with_conditions(std::slice::from_ref(condition))?),
            None => Ok(conversation),
        }
    }

    /// What the user says of a prompt besides its text.
    pub fn about(&self, sampling: &SamplingArgs) -> Result<About, Failure> {
        self.check_task(sampling.task.as_deref())?;
        let condition = self.condition(sampling.condition.as_deref())?;
        Ok(About { task: sampling.task.clone(), condition })
    }

    /// The condition as a vector, where an adapter chooses by one: `given` is a file or the condition itself.
    fn condition(&self, given: Option<&str>) -> Result<Option<Vec<f32>>, Failure> {
        let wrong = |what: String| Failure::Usage(format!("--condition: {what}"));
        let adapters = self.bank.adapters().iter();
        let Some(own) = adapters.filter_map(|(adapter, _)| adapter.method().options().condition()).next()
        else {
            return match given {
                Some(_) => Err(wrong("no adapter chooses by a condition".into())),
                None => Ok(None),
            };
        };
        let kind = if own.condition == ConditionKind::Text {
            "a text, or a file with one, is needed".to_string()
        } else {
            format!("{} numbers as a JSON array, or a file with them, are needed", own.condition_width)
        };
        let given = given.ok_or_else(|| wrong(kind.clone()))?;
        let text = if Path::new(given).is_file() {
            let text = std::fs::read_to_string(given)
                .map_err(|error| wrong(format!("{given} cannot be read: {error}")))?;
            // Editors end a file with a line break that the text does not have.
            text.trim_end().to_string()
        } else {
            given.to_string()
        };
        let condition = match own.condition {
            ConditionKind::Text => Condition::Text(text),
            ConditionKind::Vector => {
                let values: Vec<f32> = serde_json::from_str(&text).map_err(|_| wrong(kind.clone()))?;
                if values.len() != own.condition_width || values.iter().any(|v| !v.is_finite()) {
                    return Err(wrong(format!("{kind}; there are {}", values.len())));
                }
                Condition::Vector(values)
            }
        };
        Ok(Some(condition_vector(&condition, &self.model, &self.text.tokenizer)?))
    }

    /// Refuses a task where no adapter chooses by task, or one that is unknown to it, and its absence where one is needed.
    fn check_task(&self, task: Option<&str>) -> Result<(), Failure> {
        let adapters = self.bank.adapters().iter();
        let mut by_task = adapters.filter(|(a, _)| a.method().options().chooses_by_task()).peekable();
        if let (Some(task), None) = (task, by_task.peek()) {
            let what = format!("'{task}' is given, but no adapter chooses by task");
            return Err(Failure::Usage(format!("--task: {what}")));
        }
        for tasks in by_task.filter_map(|(adapter, _)| adapter.method().options().tasks()) {
            let known = || Failure::Usage(format!("--task: one of {} is needed", tasks.tasks.0.join(", ")));
            tasks.number(task.ok_or_else(known)?).map_err(|error| Failure::Usage(format!("--{error}")))?;
        }
        Ok(())
    }
}

#[derive(clap::Args)]
pub struct SamplingArgs {
    /// Tokens of an answer at most.
    #[arg(short = 'n', long, visible_alias = "max-new-tokens", default_value_t = ReplyOptions::default().max_tokens)]
    pub max_tokens: usize,
    /// 0 always takes the most likely token.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Only this many most likely tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Only the most likely tokens that add up to this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// The task of the prompt, by its label in the training data: for adapters that choose by task.
    #[arg(long)]
    task: Option<String>,
    /// A text, or a file with it (a JSON array of numbers where the adapter was trained with vectors): for adapters that
    /// choose by a condition.
    #[arg(long, value_name = "FILE|TEXT", allow_hyphen_values = true)]
    condition: Option<String>,
    /// The same seed draws the same answers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Stop before this text; may be given several times. The model's own end tokens always end an answer.
    #[arg(long, allow_hyphen_values = true)]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// Makes the sampler and the options of answers; an invalid value is wrong usage.
    pub fn open(&self) -> Result<(Sampler, ReplyOptions), Failure> {
        if self.max_tokens == 0 {
            return Err(Failure::Usage("--max-tokens: is 0, must be at least 1".into()));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Failure::Usage("--stop: is empty: every answer would end before its start".into()));
        }
        let temperature = self.temperature;
        let top_k = self.top_k;
        let top_p = self.top_p;
        let seed = self.seed;
        let sampler = Sampler::new(Sampling { temperature, top_k, top_p, seed })
            .map_err(|error| Failure::Usage(format!("--{}", error.to_string().replacen('_', "-", 1))))?;
        Ok((sampler, ReplyOptions { max_tokens: self.max_tokens, stops: self.stop.clone() }))
    }
}

/// The vision part of the model at a path, or the one beside it.
pub fn open_sight(
    path: &Path,
    beside: Option<&Path>,
    model: &Model,
    text: &ModelText,
) -> mixlora::Result<Sight> {
    let open =
        |place| Sight::open(&place, model, &text.tokenizer, &LoadOptions::default(), false, Stream::new(0));
    VisionPlace::of(path, beside)?.map_or(Ok(None), open)?.ok_or_else(|| no_vision_part(path))
}

/// The error for a model that sees no pictures.
pub fn no_vision_part(path: &Path) -> mixlora::Error {
    let what =
        "has no vision part: it is a decoder alone, and sees no pictures; --vision gives it one".into();
    mixlora::Error::File { path: path.into(), what }
}
