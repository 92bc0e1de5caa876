//! Training one cell, and asking what it learned.

use super::measure::{Clock, instructions};
use super::{Cell, FINAL, FORMAT, Measured, Part, Place, Study, TaskAnswers};
use crate::adapter::Adapter;
use crate::data::{Batch, Dataset};
use crate::device::Place as Machine;
use crate::io::folder;
use crate::model::Model;
use crate::train::{
    End, GeneralPrompts, Inputs, NO_TASK, Observer, Parts, Progress, Run, Scored, StepReport, Stop,
    base_files, give_conditions, loss_of, score_forced,
};
use crate::{Device, Error, Result};
use std::collections::BTreeMap;
use std::time::Instant;

/// Points of a cell's loss curve.
const POINTS: usize = 40;
/// Steps by which the time of a cell is estimated before one is finished.
const PROBED: usize = 3;
/// Questions that are timed one by one.
const TIMED: usize = 16;

/// Trains the cells of a study, one after the other, on one device.
pub struct Trainer<'a> {
    study: &'a Study,
    device: Device,
    /// Whether the process does nothing else, so that its times are those of the cell.
    alone: bool,
    /// General prompts with the base model's answers, once they were needed.
    general: Option<GeneralPrompts>,
}

/// Losses of the steps.
#[derive(Default)]
struct Losses(Vec<f64>, u64);

impl Observer for Losses {
    fn step(&mut self, report: &StepReport, progress: &Progress) {
        self.0.push(report.loss);
        self.1 = progress.tokens;
    }
}

/// What the parts of the data are to a run.
struct Asked {
    parts: Parts,
    /// Questions by part.
    questions: BTreeMap<String, Dataset>,
    ends: Vec<u32>,
}

impl<'a> Trainer<'a> {
    /// On a device of its own. `alone` says whether no other cell is trained in this process at the same time.
    pub fn new(study: &'a Study, device: Device, alone: bool) -> Self {
        Trainer { study, device, alone, general: None }
    }

    /// Trains a cell; none where it was stopped.
    ///
    /// # Errors
    /// The data or the model cannot be read, samples have no task, or the training fails.
    pub fn train(&mut self, place: &Place, stop: &Stop) -> Result<Option<Cell>> {
        let Asked { parts, questions, ends } = self.open(place)?;
        let pad = parts.pad;
        let mut run = Run::start(parts, None)?;
        let model = run.session.model.clone();
        let memory = self.device.memory();
        memory.inspect(|memory| memory.reset_peak());
        let mut losses = Losses::default();
        let clock = Clock::start();
        let end = run.go(stop, &mut losses).map_err(|error| match error {
            Error::Diverged(what) => {
                let name = self.study.file_name(place);
                Error::Diverged(format!("{name}: {what}; take this learning rate out of the grid"))
            }
            other => other,
        })?;
        if end == End::Stopped {
            return Ok(None);
        }
        let spent = clock.stop();
        let peak_bytes = memory.map(|memory| memory.peak());
        let began = Instant::now();
        let adapter = run.session.adapter.clone();
        let mut asked = BTreeMap::new();
        for (name, data) in &questions {
            let scored = score_forced(&model, &adapter, data, pad, &ends)?;
            asked.insert(name.clone(), part(data, &scored));
        }
        // General prompts have neither a task nor a condition.
        let options = adapter.method().options();
        let asks = !options.chooses_by_task() && options.condition().is_none();
        let general = self.general.as_ref().filter(|_| asks);
        let forgotten = general.map(|general| general.forgotten(&model, &adapter)).transpose()?;
        let ask_seconds = began.elapsed().as_secs_f64();
        let row = &self.study.rows[place.row];
        let threads = match &self.device {
            Device::Cpu(cpu) => Some(cpu.threads()),
            _ => None,
        };
        let machine = Machine::of(&self.device);
        let files = adapter.files(&model, "")?;
        Ok(Some(Cell {
            format: FORMAT,
            study: fingerprint(self.study)?,
            name: row.name.clone(),
            method: adapter.method().name().into(),
            options: run.config().method.tree(),
            learning_rate: place.learning_rate,
            seed: place.seed,
            steps: run.steps(),
            trained_values: adapter.trainable_values() as u64,
            active_values: active_values(&adapter),
            router: run.told_apart(&questions[FINAL])?,
            parts: asked,
            forgotten,
            curve: curve(&losses.0),
            measured: Measured {
                device: machine.adapter + instructions(&self.device),
                threads,
                version: machine.commit,
                train_seconds: spent.seconds,
                ask_seconds,
                tokens_per_second: losses.1 as f64 / spent.seconds,
                question_ms: question_ms(&model, &adapter, &questions[FINAL], pad)?,
                peak_bytes,
                adapter_bytes: files.iter().map(|(_, bytes)| bytes.len() as u64).sum(),
                utilisation: spent.busy.filter(|_| self.alone).map(|busy| busy / threads.unwrap_or(1) as f64),
                joules: spent.joules.filter(|_| self.alone),
            },
        }))
    }

    /// Seconds of a cell's training, by its first steps.
    ///
    /// # Errors
    /// As [`train`](Trainer::train).
    pub fn estimate(&mut self, place: &Place) -> Result<f64> {
        let mut run = Run::start(self.open(place)?.parts, None)?;
        // The first step prepares what the others find.
        run.go(&Stop::at(Some(1)), &mut ())?;
        let began = Instant::now();
        run.go(&Stop::at(Some(1 + PROBED)), &mut ())?;
        Ok(began.elapsed().as_secs_f64() * run.steps() as f64 / PROBED.min(run.steps()) as f64)
    }

    /// Reads text, data and model of a cell.
    fn open(&mut self, place: &Place) -> Result<Asked> {
        let inputs = Inputs::read(self.study.training(place)?)?;
        let text = inputs.text.clone();
        let mut questions = BTreeMap::new();
        for name in self.study.all_parts() {
            let path = self.study.part_file(&name)?;
            let asked = inputs.encoder.dataset(&path, &inputs.config.text.read(&path)?)?;
            if asked.tasks.iter().any(Option::is_none) {
                let what = "has samples without a task, and a study tells tasks apart: give each line a field 'task'";
                return Err(Error::file(path, what));
            }
            questions.insert(name, asked);
        }
        let encoder = inputs.config.text.encoder(&text)?;
        let parts = inputs.load(&self.device, false)?;
        if parts.config.method.options().condition().is_some() {
            for data in questions.values_mut() {
                give_conditions(data, &parts.model, &text.tokenizer)?;
            }
        }
        if self.study.forgotten && self.general.is_none() {
            self.general = Some(GeneralPrompts::new(&parts.model, &text, &encoder)?);
        }
        Ok(Asked { parts, questions, ends: text.tokenizer.end_tokens() })
    }
}

/// What tells a study's cells apart from those of other models, data or settings, whatever the folders are.
///
/// # Errors
/// A file of the data or of the model cannot be read.
pub(super) fn fingerprint(study: &Study) -> Result<String> {
    let config = &study.rows[0].config;
    let names = std::iter::once("train".to_string()).chain(study.all_parts());
    let mut files = names.map(|name| study.part_file(&name)).collect::<Result<Vec<_>>>()?;
    files.extend(base_files(config)?);
    let all = format!("{} {}", study.given(), folder::fingerprint(&files)?);
    Ok(format!("{:08x}", crc32fast::hash(all.as_bytes())))
}

/// Answers by task.
fn part(data: &Dataset, scored: &[Scored]) -> Part {
    let mean = |scores: &[&Scored]| {
        let tokens: usize = scores.iter().map(|score| score.tokens).sum();
        scores.iter().map(|score| score.loss).sum::<f64>() / tokens.max(1) as f64
    };
    let mut by_task: BTreeMap<&str, Vec<&Scored>> = BTreeMap::new();
    for (task, score) in data.tasks.iter().zip(scored) {
        by_task.entry(task.as_deref().unwrap_or(NO_TASK)).or_default().push(score);
    }
    let answers = |(task, scores): (&&str, &Vec<&Scored>)| {
        let right = scores.iter().map(|score| if score.right { '1' } else { '0' }).collect();
        (task.to_string(), TaskAnswers { loss: mean(scores), right })
    };
    Part { loss: mean(&scored.iter().collect::<Vec<_>>()), tasks: by_task.iter().map(answers).collect() }
}

/// The values of the adapter's factors that one token meets.
fn active_values(adapter: &Adapter) -> u64 {
    use crate::mixture::Side;
    let options = adapter.method().options();
    let trainable = adapter.trainable();
    let factors = trainable.iter().map(|param| {
        let of_factors = param
            .parts()
            .iter()
            .any(|(name, _)| options.side(name.rsplit('.').next().unwrap_or(name)) != Side::Rest);
        if of_factors { param.value().len() } else { 0 }
    });
    (factors.sum::<usize>() as f64 * options.active_share()).round() as u64
}

/// The step and the mean loss since the point before.
fn curve(losses: &[f64]) -> Vec<(usize, f64)> {
    let each = losses.len().div_ceil(POINTS).max(1);
    let point = |(i, losses): (usize, &[f64])| {
        (i * each + losses.len(), losses.iter().sum::<f64>() / losses.len() as f64)
    };
    losses.chunks(each).enumerate().map(point).collect()
}

/// The median time of a pass over one question, in milliseconds.
fn question_ms(model: &Model, adapter: &Adapter, data: &Dataset, pad: u32) -> Result<f64> {
    let mut times = Vec::new();
    for example in data.examples.iter().take(TIMED) {
        let batch = Batch::new(&[example], adapter.method().framing(), pad, model.device())?;
        let began = Instant::now();
        loss_of(model, adapter, &batch)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times.get(times.len() / 2).copied().unwrap_or(0.0))
}
