//! Training runs over the set, and measurements before and after them.

use super::base::Base;
use crate::progress::Progress;
use crate::signals::Received;
use crate::train::Shown;
use crate::{Failure, out};
use mixlora::adapter::Adapter;
use mixlora::data::{Batch, Dataset, Sample, read_samples};
use mixlora::mixture::{Framing, Methods, find};
use mixlora::model::{Model, ModelFiles};
use mixlora::text::ModelText;
use mixlora::train::{
    DeviceOptions, End, Forgotten, GeneralPrompts, Inputs, Questions, Run, RunConfig, Stop, TaskScore,
    TrainOptions, loss_of,
};
use mixlora::{Device, Error};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// The number of samples per pass when the loss is measured.
const TOGETHER: usize = 8;
/// The longest answer to ask for, in tokens.
const MAX_ANSWER: usize = 32;

/// A base model with the set that it learns.
pub struct Lesson<'a> {
    pub base: &'a Base,
    pub options: DeviceOptions,
    pub train: TrainOptions,
    data: PathBuf,
    device: Device,
    text: &'a ModelText,
    held_out: Dataset,
    pub questions: Questions,
    /// General prompts with what the base model says to them.
    general: GeneralPrompts,
    stop: (Stop, Received),
}

/// The measured abilities of a model.
pub struct Measured {
    /// Mean cross-entropy of the held-out answers.
    pub loss: f64,
    pub answers: Vec<Option<String>>,
    pub scores: Vec<TaskScore>,
    pub seconds: f64,
}

/// A training run with its result.
pub struct Learned {
    pub method: String,
    pub adapter: PathBuf,
    pub trained_values: usize,
    pub steps: usize,
    /// The number of trained tokens, without padding.
    pub tokens: u64,
    pub seconds: f64,
    pub first_loss: f64,
    pub last_loss: f64,
    /// The peak memory of the device in training, in bytes.
    pub device_peak: Option<u64>,
    pub after: Measured,
    /// What became of answers that training was not about.
    pub forgotten: Forgotten,
}

impl<'a> Lesson<'a> {
    pub fn new(
        base: &'a Base,
        text: &'a ModelText,
        device: Device,
        options: DeviceOptions,
        train: TrainOptions,
        data: PathBuf,
        stop: (Stop, Received),
    ) -> Result<Self, Failure> {
        let test = data.join("test.jsonl");
        let samples: Vec<Sample> = read_samples(&test)?;
        let mut config = RunConfig::defaults(Methods::builtin().standard())?;
        config.train = train.clone();
        config.check()?;
        let encoder = config.text.encoder(text)?;
        let held_out = encoder.dataset(&test, &samples)?;
        let questions = Questions::new(text, &encoder, &samples, MAX_ANSWER)?;
        let model = open(base, &device, &options)?;
        let general = GeneralPrompts::new(&model, text, &encoder)?;
        Ok(Lesson { base, options, train, data, device, text, held_out, questions, general, stop })
    }

    /// Measures the base model.
    pub fn before(&self) -> Result<Measured, Failure> {
        self.measure(&open(self.base, &self.device, &self.options)?, None)
    }

    /// Trains an adapter in its own folder and measures it.
    pub fn teach(&self, method: &str, folder: &Path) -> Result<Learned, Failure> {
        let mut config = RunConfig::defaults(find(method)?)?;
        config.model = self.base.path.clone();
        config.data = self.data.clone();
        config.train = self.train.clone();
        config.device = self.options.clone();
        config.check()?;
        let parts = Inputs::read(config)?.load(&self.device, false)?;
        let mut run = Run::start(parts, Some(folder))?;
        if let Some(memory) = self.device.memory() {
            memory.reset_peak();
        }
        out::notes(&run.session.adapter.method().notes());
        let mut shown = Shown::new(false);
        shown.start(&run);
        let began = Instant::now();
        let end = run.go(&self.stop.0, &mut shown);
        shown.bar.finish_and_clear();
        if end? == End::Stopped {
            out::note(&format!("stopped: go on with mixlora train --resume {}", folder.display()));
            return Err(self.stopped());
        }
        let seconds = began.elapsed().as_secs_f64();
        let device_peak = self.device.memory().map(mixlora::device::Memory::peak);
        let after = self.measure(&run.session.model, Some(&run.session.adapter))?;
        let forgotten = self.general.forgotten(&run.session.model, &run.session.adapter)?;
        Ok(Learned {
            method: method.into(),
            adapter: folder.into(),
            trained_values: run.session.adapter.trainable_values(),
            steps: run.steps(),
            tokens: run.state().tokens,
            seconds,
            first_loss: shown.first.unwrap_or(f64::NAN),
            last_loss: shown.last.unwrap_or(f64::NAN),
            device_peak,
            after,
            forgotten,
        })
    }

    fn stopped(&self) -> Failure {
        Failure::Signal(self.stop.1.received().unwrap_or(2))
    }

    /// Measures the loss of the held-out answers and collects the model's own answers.
    fn measure(&self, model: &Arc<Model>, adapter: Option<&Adapter>) -> Result<Measured, Failure> {
        let began = Instant::now();
        self.text.tokenizer.check_rows(model.config().vocab_size)?;
        let loss = mean_loss(self.text, model, adapter, &self.held_out)?;
        let asked = Progress::new("asking", self.questions.list.len(), "questions");
        let answers = self.questions.answer(model, adapter, &mut |done| {
            asked.reach(done);
            !self.stop.0.asked()
        });
        drop(asked);
        let answers = answers?;
        if self.stop.0.asked() {
            return Err(self.stopped());
        }
        let scores = self.questions.score(&answers);
        let seconds = began.elapsed().as_secs_f64();
        Ok(Measured { loss, answers, scores, seconds })
    }
}

/// Mean cross-entropy of the answers of a set.
pub fn mean_loss(
    text: &ModelText,
    model: &Model,
    adapter: Option<&Adapter>,
    data: &Dataset,
) -> Result<f64, Failure> {
    let framing = adapter.map_or_else(Framing::default, |adapter| adapter.method().framing());
    let pad = text.tokenizer.pad_within(model.config().vocab_size);
    let mut sum = 0.0;
    let mut tokens = 0;
    // Sorting by length reduces padding.
    let mut order: Vec<usize> = (0..data.examples.len()).collect();
    order.sort_by_key(|&index| data.examples[index].ids.len());
    for ids in order.chunks(TOGETHER) {
        let examples: Vec<_> = ids.iter().map(|&index| &data.examples[index]).collect();
        let batch = Batch::new(&examples, framing, pad, model.device())?;
        sum += loss_of(model, adapter, &batch)?;
        tokens += batch.trained;
    }
    Ok(sum / tokens.max(1) as f64)
}

/// Refuses a method that is not known, before anything is fetched or trained.
pub fn known(method: &str) -> Result<(), Failure> {
    find(method).map(|_| ()).map_err(|error: Error| Failure::Usage(format!("--compare: {error}")))
}

/// The model that learns.
fn open(base: &Base, device: &Device, options: &DeviceOptions) -> Result<Arc<Model>, Failure> {
    Ok(Model::load(&ModelFiles::open(&base.path)?, device, &options.weights.into())?)
}
