//! `mixlora analyse`: one file per analysis, and what they look at.

mod interference;
mod routing;

use crate::data_text::{FeatureArgs, SampleArgs};
use crate::device_args::{CheckArgs, DeviceArgs, WeightsArgs};
use crate::measured::{Asked, Measured};
use crate::model_args::Opened;
use crate::model_path::model_path;
use crate::{Failure, out};
use clap::Subcommand;
use mixlora::Error;
use mixlora::adapter::Adapter;
use mixlora::analyse::{Panel, TaskBatches, page};
use mixlora::data::{Batch, Dataset};
use mixlora::mixture::Methods;
use mixlora::model::Model;
use mixlora::train::{RunConfig, StoredRun, TextOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The analyses.
#[derive(Subcommand)]
pub enum Analyse {
    /// Whether a training step for one task helps or harms another, by gradients.
    Interference(interference::Args),
    /// Which factors tasks choose, and whether instances of a task choose alike.
    Routing(routing::Args),
}

pub fn run(analyse: &Analyse) -> Result<(), Failure> {
    match analyse {
        Analyse::Interference(args) => interference::run(args),
        Analyse::Routing(args) => routing::run(args),
    }
}

/// What is looked at, and where the report goes.
#[derive(clap::Args)]
pub struct Subjects {
    /// The folder of a training run: its model, its adapter, its data and its text settings, where no option says otherwise.
    #[arg(long)]
    run: Option<PathBuf>,
    /// A .gguf file, a Hugging Face directory, or a file in one.
    #[arg(long, required_unless_present = "run", value_parser = model_path())]
    model: Option<PathBuf>,
    /// The vision part of a model that has none of its own: a GGUF file (mmproj), or a directory with a vision tower alone.
    #[arg(long, visible_alias = "mmproj", value_name = "PATH")]
    vision: Option<PathBuf>,
    /// An adapter directory, or the folder of a training run. May be given several times: each is analysed alone, and all
    /// stand side by side.
    #[arg(long, required_unless_present = "run")]
    adapter: Vec<PathBuf>,
    /// A data file, or a folder with test.jsonl, valid.jsonl or train.jsonl, of samples with a task.
    #[arg(long, required_unless_present = "run")]
    data: Option<PathBuf>,
    /// Which file of a folder; test where there is one, else valid, when it is not given.
    #[arg(long, value_parser = ["train", "valid", "test"])]
    split: Option<String>,
    /// Only this task; may be given several times. All when it is not given.
    #[arg(long, value_name = "NAME")]
    task: Vec<String>,
    /// Samples of each task at most, the first ones of the file.
    #[arg(long, value_name = "N", default_value_t = 24)]
    samples: usize,
    /// Longest sample, in tokens.
    #[arg(long)]
    max_length: Option<usize>,
    /// A built-in template (chatml) or a Jinja file, instead of the model's.
    #[arg(long)]
    template: Option<String>,
    #[command(flatten)]
    reading: SampleArgs,
    #[command(flatten)]
    features: FeatureArgs,
    #[command(flatten)]
    weights: WeightsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    checks: CheckArgs,
    /// Write a picture into this SVG file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON with every figure instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// What was opened of it.
pub struct Subject {
    opened: Opened,
    /// With the names under which they are reported.
    pub adapters: Vec<(String, Adapter)>,
    /// Where the samples are from.
    pub path: PathBuf,
    data: Dataset,
    tasks: BTreeMap<String, Vec<usize>>,
}

impl Subjects {
    /// Opens model, adapters and samples.
    pub fn open(&self) -> Result<Subject, Failure> {
        if self.samples == 0 {
            return Err(Failure::Usage("--samples: is 0, must be at least 1".into()));
        }
        let run = self.run.as_deref().map(stored).transpose()?;
        let of_run = |path: fn(&RunConfig) -> &PathBuf| run.as_ref().map(path);
        let model = self.model.as_ref().or(of_run(|run| &run.model));
        let data = self.data.as_ref().or(of_run(|run| &run.data));
        let (Some(model), Some(data)) = (model, data) else {
            return Err(Failure::Usage("--model, --adapter and --data are needed, or --run".into()));
        };
        let mut options = run.as_ref().map_or_else(TextOptions::default, |run| run.text.clone());
        options.max_length = self.max_length.unwrap_or(options.max_length);
        options.template = self.template.clone().or(options.template);
        let options = self.features.over(options);
        let mut measured = Measured::read(data, self.split.as_deref(), self.reading.over(options.clone()))?;
        let labels = self.chosen_tasks(&mut measured)?;
        let device = self.device.open()?;
        let vision = self.vision.clone().or(run.as_ref().and_then(|run| run.vision.clone()));
        let text = options.open(Some(model), vision.as_deref())?;
        out::notes(&text.notes);
        let loaded = self.checks.model(model, &device, self.weights.weights())?;
        text.tokenizer.check_rows(loaded.config().vocab_size)?;
        let folders = self.run.iter().chain(&self.adapter);
        let adapters: Vec<(&PathBuf, Adapter)> = folders
            .map(|folder| Ok((folder, self.checks.adapter(folder, &loaded)?)))
            .collect::<Result<_, Failure>>()?;
        let own = adapters.iter().filter(|(_, adapter)| has_projector(adapter)).count();
        if own > 0 && own < adapters.len() {
            let what = "some have a projector of their own and others have not: give those with one apart";
            return Err(Error::Refused { field: "adapter".into(), what: what.into() }.into());
        }
        // The first one comes with its projector; each of the others brings its own when it is its turn.
        let opened = Opened {
            text,
            model: loaded,
            bank: adapters.first().map(|(_, adapter)| adapter).into(),
            place: (model.clone(), vision),
            route: None,
            force: self.checks.force,
            sight: OnceLock::new(),
        };
        let methods = || adapters.iter().map(|(_, adapter)| adapter.method());
        let asked = Asked {
            rows_in_front: methods().map(|method| method.framing().rows_in_front()).max().unwrap_or(0),
            conditions: methods().any(|method| method.options().condition().is_some()),
        };
        let (_, data) = measured.encode(&opened, &asked)?;
        let tasks = by_task(&labels, &data, &measured.path)?;
        Ok(Subject { opened, adapters: named(adapters), path: measured.path, data, tasks })
    }

    /// Leaves the first samples of each task that is asked for; the labels of these tasks.
    fn chosen_tasks(&self, measured: &mut Measured) -> Result<BTreeSet<String>, Failure> {
        let path = measured.path.display().to_string();
        let all: BTreeSet<String> = measured.samples.iter().filter_map(|s| s.task.clone()).collect();
        let known = all.iter().cloned().collect::<Vec<_>>().join(", ");
        if let Some(task) = self.task.iter().find(|task| !all.contains(*task)) {
            let what = format!("'{task}' is no task of {path}; there are {known}");
            return Err(Failure::Usage(format!("--task: {what}")));
        }
        let without = measured.samples.iter().filter(|sample| sample.task.is_none()).count();
        if without > 0 {
            out::note(&format!("note: {without} samples of {path} have no task, and are left out"));
        }
        let is_asked = |task: &String| self.task.is_empty() || self.task.contains(task);
        let labels: BTreeSet<String> = all.into_iter().filter(is_asked).collect();
        if labels.len() < 2 {
            let there = if known.is_empty() { "none".to_string() } else { known };
            let what = format!(
                "tasks are compared with each other: at least two are needed, and {path} has {there}{}; each line's \
                 field 'task' (or 'task_name') says its task",
                if self.task.is_empty() { "" } else { ", of which not all are asked for" }
            );
            return Err(Error::Refused { field: "task".into(), what }.into());
        }
        let mut taken: BTreeMap<String, usize> = BTreeMap::new();
        measured.samples.retain(|sample| {
            let Some(task) = sample.task.as_ref().filter(|task| labels.contains(*task)) else { return false };
            let taken = taken.entry(task.clone()).or_default();
            *taken += 1;
            *taken <= self.samples
        });
        Ok(labels)
    }

    /// Writes the picture, where one is asked for.
    pub fn draw(&self, rows: &[Vec<Panel<'_>>]) -> Result<(), Failure> {
        if let Some(path) = &self.svg {
            mixlora::atomic::write(path, page(rows).as_bytes())?;
            out::note(&format!("picture in {}", path.display()));
        }
        Ok(())
    }
}

impl Subject {
    /// Gives the model the projector that an adapter was trained with, where pictures are looked at.
    pub fn take_projector(&self, adapter: &Adapter) -> Result<(), Failure> {
        let mut pictures = self.data.examples.iter().map(|example| &example.pictures);
        if pictures.all(|pictures| pictures.is_empty()) {
            return Ok(());
        }
        Ok(self.opened.sight()?.take_from(&Some(adapter).into(), self.opened.force)?)
    }
}

fn has_projector(adapter: &Adapter) -> bool {
    adapter.vision().is_some_and(|vision| !vision.projector().is_empty())
}

/// The settings of a run.
fn stored(dir: &Path) -> Result<RunConfig, Failure> {
    let run = StoredRun::open(dir, &Methods::builtin())?;
    out::notes(&run.notes);
    Ok(run.config)
}

/// The examples of each task, by their numbers.
fn by_task(
    labels: &BTreeSet<String>,
    data: &Dataset,
    path: &Path,
) -> Result<BTreeMap<String, Vec<usize>>, Failure> {
    let mut tasks: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (number, task) in data.tasks.iter().enumerate() {
        tasks.entry(task.clone().unwrap_or_default()).or_default().push(number);
    }
    match labels.iter().find(|label| !tasks.contains_key(*label)) {
        None => Ok(tasks),
        Some(label) => {
            let what = format!(
                "'{label}' has no sample that can be used in {}: all are left out; name the other tasks with --task, or \
                 mend its samples",
                path.display()
            );
            Err(Error::Refused { field: "task".into(), what }.into())
        }
    }
}

/// Adapters by the names of their methods, with their folders where a method occurs twice.
fn named(adapters: Vec<(&PathBuf, Adapter)>) -> Vec<(String, Adapter)> {
    let names: Vec<&str> = adapters.iter().map(|(_, adapter)| adapter.method().name()).collect();
    let name = |at: usize, folder: &Path| {
        let once = names.iter().filter(|name| **name == names[at]).count() == 1;
        if once { names[at].to_string() } else { format!("{} in {}", names[at], folder.display()) }
    };
    let all = adapters.iter().enumerate();
    all.map(|(at, (folder, adapter))| (name(at, folder), adapter.clone())).collect()
}

impl Subject {
    pub fn model(&self) -> &Model {
        &self.opened.model
    }

    /// The samples as batches of so many, as an adapter wants them.
    pub fn batches(&self, adapter: &Adapter, size: usize) -> Result<Vec<TaskBatches>, Failure> {
        let framing = adapter.method().framing();
        let model = &self.opened.model;
        let pad = self.opened.text.tokenizer.pad_within(model.config().vocab_size);
        let batch = |numbers: &[usize]| {
            let examples: Vec<_> = numbers.iter().map(|&number| &self.data.examples[number]).collect();
            Batch::new(&examples, framing, pad, model.device())
        };
        let of_task = |(task, numbers): (&String, &Vec<usize>)| {
            let batches = numbers.chunks(size.max(1)).map(batch).collect::<mixlora::Result<_>>()?;
            Ok(TaskBatches { task: task.clone(), batches })
        };
        self.tasks.iter().map(of_task).collect()
    }
}

/// A figure of a table.
fn figure(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.3}"))
}
