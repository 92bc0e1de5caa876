//! What a run reads: the text, the data and the model that its options name.

use super::conditions::{give_conditions, with_conditions};
use super::samples::{Samples, measured};
use super::{
    Observer, Parts, Planned, Run, RunConfig, RunFolder, StoredRun, TextOptions, look_at_pictures_with,
};
use crate::adapter::{Expert, with_experts};
use crate::data::{
    Columns, DataFiles, Dataset, EncodeOptions, Encoder, LossOn, ReadOptions, Sample, read_samples_with,
};
use crate::io::cache;
use crate::io::folder::fingerprint;
use crate::mixture::{Methods, SitePart};
use crate::model::vision::VisionPlace;
use crate::model::{LoadOptions, Model, ModelFiles, ModelPlace, Weights};
use crate::rng::Stream;
use crate::text::{ChatTemplate, ModelText, PICTURE, PictureTokens, Sight, Tokenizer};
use crate::{Device, Error, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What the options of a run name, read up to the weights of the model, of which only the headers are.
pub struct Inputs {
    /// The options; no example is longer than the model's context.
    pub config: RunConfig,
    pub model: ModelFiles,
    pub text: ModelText,
    /// What made the samples examples.
    pub encoder: Encoder,
    pub train: Dataset,
    pub valid: Option<Dataset>,
    /// Samples of the validation file, to be answered.
    pub valid_samples: Vec<Sample>,
    /// What is not read, left out or cut: for the user to know before the first step.
    pub notes: Vec<String>,
    /// Tells the data files apart from others.
    fingerprint: String,
}

impl Inputs {
    /// Reads the text side of the model and the data: train.jsonl and, if it is there, valid.jsonl of a folder, or one
    /// file.
    ///
    /// # Errors
    /// A file is missing or malformed, there is no training file, a token has no row in the model, or lines cannot be
    /// used: all of them are listed, up to a limit.
    pub fn read(mut config: RunConfig) -> Result<Self> {
        let model = ModelFiles::open(&config.model)?;
        let mut notes: Vec<String> = cut_to_context(&mut config, &model).into_iter().collect();
        let vision = config.vision.as_deref();
        let text = config.text.open(Some(&config.model), vision)?;
        let pictures = PictureTokens::of(&config.model, vision, &text.tokenizer)?;
        let sees = pictures.is_some();
        let encoder = config.text.encoder(&text)?.with_pictures(pictures)?;
        let files = DataFiles::find(&config.data)?;
        let Samples { train, valid, paths, notes: of_files } = Samples::read(&config, &files)?;
        notes.extend(of_files);
        let last = paths.last().unwrap_or(&config.data);
        let valid_samples = valid.unwrap_or_default();
        let none = valid_samples.is_empty();
        let valid = (!none).then(|| encoder.dataset(last, &valid_samples)).transpose()?;
        let train = encoder.dataset(&paths[0], &train)?;
        let experts = Expert::open_all(&config.experts, model.config())?;
        let (method, targets) = with_experts(&config.method, &config.target_modules, &experts)?;
        config.method = method;
        config.target_modules = targets;
        without_preferences(&config, &train)?;
        check_projector(&config, &train, valid.as_ref(), sees)?;
        with_tasks(&mut config, &train, valid.as_ref())?;
        with_conditions(&mut config, [Some(&train), valid.as_ref()], model.config().hidden_size)?;
        let length = config.text.max_length;
        let of_valid = valid.as_ref().and_then(|v| v.counts.note("validation samples", length));
        let of_data = [files.note(), train.counts.note("training samples", length), of_valid];
        notes.extend(of_data.into_iter().flatten());
        let fingerprint = fingerprint(&paths)?;
        Ok(Inputs { config, model, text, encoder, train, valid, valid_samples, notes, fingerprint })
    }

    /// Loads the weights; with that, a run can be made. With `allow_nonfinite`, weights with NaN or infinite values are
    /// taken as they are.
    ///
    /// # Errors
    /// The vocabulary does not fit the model, or the model's files cannot be read.
    pub fn load(mut self, device: &Device, allow_nonfinite: bool) -> Result<Parts> {
        let open = self.config.device.weights == Weights::Auto;
        self.config = self.resolved(Some(device))?;
        let rows = self.model.config().vocab_size;
        self.text.tokenizer.check_rows(rows)?;
        for data in [Some(&self.train), self.valid.as_ref()].into_iter().flatten() {
            data.check_rows(&self.config.data, rows)?;
        }
        let cache = cache::folder(None).ok();
        let options = LoadOptions { weights: self.config.device.weights, allow_nonfinite, cache };
        let model = Model::load(&self.model, device, &options)?;
        let mut train = self.train;
        let mut valid = self.valid;
        if self.config.method.options().condition().is_some() {
            for set in std::iter::once(&mut train).chain(&mut valid) {
                give_conditions(set, &model, &self.text.tokenizer)?;
            }
        }
        let mut vision = None;
        let mut notes = self.notes;
        if [Some(&train), valid.as_ref()].into_iter().flatten().any(has_pictures) {
            let t = &self.config.train;
            let trained = t.projector_learning_rate.is_some() || t.align_epochs > 0;
            let seed = Stream::new(self.config.train.seed).named("projector");
            let place = VisionPlace::of(&self.config.model, self.config.vision.as_deref())?;
            let open = |place| Sight::open(&place, &model, &self.text.tokenizer, &options, trained, seed);
            let sight = place
                .map_or(Ok(None), open)?
                .ok_or_else(|| Error::refused("model", "has no vision part, and the data have pictures"))?;
            let sets = std::iter::once(&mut train).chain(&mut valid);
            notes.extend(look_at_pictures_with(sets, &sight, &self.config.text)?.notes);
            vision = Some((sight.vision.clone(), sight.part()));
        }
        notes.extend(model.notes().iter().cloned());
        let [wide, stored] = [model.weight_bytes(), Planned::from(&self.model).weight_bytes(Weights::File)?];
        if open && self.config.device.weights == Weights::F32 && stored < wide {
            let [wide, stored] = [wide, stored].map(|bytes| bytes >> 20);
            notes.push(format!(
                "weights are held in f32, {wide} MiB, with which a CPU is fastest; --weights file takes {stored}"
            ));
        }
        notes.extend(self.config.method.notes());
        Ok(Parts {
            pad: self.text.tokenizer.pad_within(rows),
            model,
            train,
            valid,
            vision,
            base: fingerprint(&base_files(&self.config)?)?,
            data: self.fingerprint,
            config: self.config,
            notes,
        })
    }
}

impl Run {
    /// Opens the run of a configuration, on the device that it names: reads text, data and model, and begins at the
    /// first step. In a folder that holds a run, that run goes on from its last checkpoint; without a folder nothing is
    /// written. The observer is told when a damaged checkpoint is passed over.
    ///
    /// [`Inputs`] is the same in three steps, to look at memory before the weights are loaded.
    ///
    /// ```
    /// use mixlora::mixture::find;
    /// use mixlora::train::{End, Run, RunConfig, Stop};
    ///
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let place = dir.path().join("run");
    /// # let data = dir.path().join("greetings.jsonl");
    /// # std::fs::write(&data, "{\"prompt\": \"Say hi. \", \"completion\": \"hi\"}\n").unwrap();
    /// let mut config = RunConfig::defaults(find("lora")?)?;
    /// config.model = "data/tiny".into();
    /// config.data = data;
    /// config.text.allow_untrained_eos = true;
    /// config.device.name = "cpu".into();
    /// config.train.steps = Some(2);
    ///
    /// let mut run = Run::open(config.clone(), Some(&place), &mut ())?;
    /// assert_eq!(run.go(&Stop::at(Some(1)), &mut ())?, End::Stopped);
    /// drop(run);
    /// let mut run = Run::open(config, Some(&place), &mut ())?;
    /// assert_eq!(run.state().step, 1);
    /// assert_eq!(run.go(&Stop::default(), &mut ())?, End::Finished);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// A file is missing or malformed, an option does not fit the model or the data, the folder is in use, or its run
    /// was of other options that cannot change, of another base model or of other data.
    pub fn open(config: RunConfig, dir: Option<&Path>, observer: &mut dyn Observer) -> Result<Self> {
        let methods = Methods::builtin().with(config.method.spec());
        let stored = dir.filter(|dir| RunFolder::is_at(dir)).map(|dir| StoredRun::open(dir, &methods));
        let stored = stored.transpose()?;
        let device = config.device.open()?;
        let inputs = Inputs::read(config)?;
        if let Some(stored) = &stored {
            stored.changes(&inputs.config)?;
        }
        let parts = inputs.load(&device, false)?;
        match stored {
            Some(stored) => Run::resume(stored, parts, observer),
            None => Run::start(parts, dir),
        }
    }
}

impl TextOptions {
    /// The text side of a model, with the tokenizer and the template that the options name instead of its own, and with a
    /// token for pictures where a vision part stands beside it.
    ///
    /// # Errors
    /// A file is missing or malformed, or there is neither a model nor a tokenizer.
    pub fn open(&self, model: Option<&Path>, vision: Option<&Path>) -> Result<ModelText> {
        let own = model.map(ModelText::open).transpose()?;
        let mut text = match (&self.tokenizer, own) {
            (Some(file), own) => {
                ModelText::new(Tokenizer::from_file(file)?, own.and_then(|own| own.template))
            }
            (None, Some(own)) => own,
            (None, None) => return Err(Error::refused("model", "a model or a tokenizer is needed")),
        };
        if let Some(name) = &self.template {
            text = ModelText::new(text.tokenizer, Some(named_template(name)?));
        }
        if vision.is_some() {
            text.tokenizer = text.tokenizer.with_control(PICTURE)?;
        }
        Ok(text)
    }

    /// How data files are read.
    ///
    /// # Errors
    /// `columns` names no key of a sample.
    pub fn reading(&self) -> Result<ReadOptions> {
        let columns = Columns::new(&self.columns)?;
        Ok(ReadOptions { image_folder: self.image_folder.clone(), columns, ending: None })
    }

    /// The samples of a file.
    ///
    /// # Errors
    /// Those of [`read_samples_with`] and of [`reading`](TextOptions::reading).
    pub fn read(&self, path: &Path) -> Result<Vec<Sample>> {
        read_samples_with(path, &self.reading()?)
    }

    /// What turns samples into examples.
    ///
    /// # Errors
    /// The length leaves no room for a trained token.
    pub fn encoder(&self, text: &ModelText) -> Result<Encoder> {
        let options = EncodeOptions {
            loss_on: if self.loss_on_all { LossOn::All } else { LossOn::Assistant },
            max_length: self.max_length,
            allow_untrained_eos: self.allow_untrained_eos,
            max_untrained: self.max_untrained,
            on_bad_image: self.on_bad_image,
        };
        Encoder::new(&text.tokenizer, text.template.as_ref(), options)
    }
}

/// What a run is measured on besides its own validation: its validation data, or what it trains on where there is none.
pub(super) fn stage_set(mut config: RunConfig) -> Result<Dataset> {
    let model = ModelFiles::open(&config.model)?;
    cut_to_context(&mut config, &model);
    let encoder = config.text.encoder(&config.text.open(Some(&config.model), None)?)?;
    let (path, samples) = measured(&config, &DataFiles::find(&config.data)?)?;
    encoder.dataset(&path, &samples)
}

/// Cuts examples to the model's context; what is to be said of it.
fn cut_to_context(config: &mut RunConfig, model: &ModelFiles) -> Option<String> {
    let context = model.config().max_positions() - config.method.framing().rows_in_front();
    if config.text.max_length <= context {
        return None;
    }
    config.text.max_length = context;
    Some(format!("the model's context has room for {context} tokens: longer examples are cut to that"))
}

/// Whether an example has a picture.
fn has_pictures(set: &Dataset) -> bool {
    set.examples.iter().any(|example| !example.pictures.is_empty())
}

/// Refuses to train a projector where there is none, or nothing that would train it; to align one that is not new; and to
/// look through a new one that is not trained.
fn check_projector(config: &RunConfig, train: &Dataset, valid: Option<&Dataset>, sees: bool) -> Result<()> {
    let trained = config.train.projector_learning_rate.is_some();
    let aligned = config.train.align_epochs > 0;
    let mixed = config.method.options().takes(SitePart::Projector);
    if mixed && trained {
        let what = "trains the projector whole, but mix_mm_projector leaves it as it is and puts a mixture there: take one";
        return Err(Error::refused("train.projector_learning_rate", what));
    }
    if (trained || aligned || mixed) && !(sees && has_pictures(train)) {
        let field = match (trained, aligned) {
            (true, _) => "train.projector_learning_rate",
            (_, true) => "train.align_epochs",
            _ => "options.mix_mm_projector",
        };
        let why = if sees {
            format!("no sample of {} has a picture", config.data.display())
        } else {
            let model = config.model.display();
            format!("{model} has no vision part, and so no projector: it is a decoder alone")
        };
        let what = format!("is for the projector of a model that sees, but {why}; leave it out");
        return Err(Error::refused(field, what));
    }
    let place = VisionPlace::of(&config.model, config.vision.as_deref())?;
    let shown = has_pictures(train) || valid.is_some_and(has_pictures);
    match place {
        Some(VisionPlace::Tower(dir)) if shown && !trained && !aligned => {
            let what = "is a tower alone, whose projector is drawn at random: train it, with --projector-learning-rate, \
                        or --align-epochs";
            Err(Error::file(dir, what))
        }
        Some(VisionPlace::Model(_) | VisionPlace::Gguf(_)) if aligned => {
            let what = "is for a new projector, and this model has one; leave it at 0";
            Err(Error::refused("train.align_epochs", what))
        }
        _ => Ok(()),
    }
}

/// Refuses wrong answers beside right ones where the method does not learn from them.
fn without_preferences(config: &RunConfig, train: &Dataset) -> Result<()> {
    let pair = train.examples.iter().zip(&train.lines).find(|(example, _)| example.rejected.is_some());
    match pair.filter(|_| config.method.options().preference().is_none()) {
        None => Ok(()),
        Some((_, line)) => {
            let what = format!(
                "the sample of line {line} in {} has one, and {} does not learn from wrong answers; peam does",
                config.data.display(),
                config.method.name()
            );
            Err(Error::refused("rejected", what))
        }
    }
}

/// Gives a method that chooses or learns by task the tasks of its training data, where its options name none.
fn with_tasks(config: &mut RunConfig, train: &Dataset, valid: Option<&Dataset>) -> Result<()> {
    if !config.method.options().needs_tasks() {
        return Ok(());
    }
    let labels: BTreeSet<&str> = train.tasks.iter().flatten().map(String::as_str).collect();
    if labels.is_empty() {
        let what = format!(
            "the samples of {} have no task, and {} learns by task: give each line a field 'task'",
            config.data.display(),
            config.method.name()
        );
        return Err(Error::refused("task", what));
    }
    let Some(tasks) = config.method.options().tasks() else { return Ok(()) };
    let mut tasks = tasks.clone();
    if tasks.tasks.0.is_empty() {
        tasks.tasks.0 = labels.iter().map(|label| label.to_string()).collect();
        config.method = config.method.with("tasks", tasks.tasks.0.clone())?;
    }
    let others = valid.into_iter().flat_map(|valid| valid.tasks.iter().flatten());
    labels.into_iter().chain(others.map(String::as_str)).try_for_each(|label| tasks.number(label).map(drop))
}

fn named_template(name: &str) -> Result<ChatTemplate> {
    if let Some(template) = ChatTemplate::named(name) {
        return Ok(template);
    }
    let fail = |what: String| Error::file(name, what);
    let text = std::fs::read_to_string(name).map_err(|error| {
        fail(format!("is neither the built-in template chatml nor a file that can be read: {error}"))
    })?;
    ChatTemplate::new(&text).map_err(|error| fail(error.to_string()))
}

/// The files of a run's model, and of the vision part beside it.
pub(crate) fn base_files(config: &RunConfig) -> Result<Vec<PathBuf>> {
    let mut files = ModelPlace::of(&config.model)?.files()?;
    if let Some(vision) = &config.vision {
        files.extend(ModelPlace::of(vision)?.files()?);
    }
    Ok(files)
}
