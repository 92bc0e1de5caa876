//! Runs one after the other: stages of a stream of tasks, each from where the one before ended, and what each knows of all
//! tasks afterwards.
//!
//! ```text
//! out/stages.json      settings of all stages, and the losses after each
//!     stage-1/         a run
//!     stage-2/         the next, which starts from the first one's adapter
//! ```

use super::inputs::stage_set;
use super::{End, Observer, Run, RunConfig, RunFolder, Stage, Stop};
use crate::adapter::{STAGE_PREFIX, STAGES};
use crate::atomic;
use crate::data::{DataFiles, Dataset};
use crate::mixture::{Methods, StageRule};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// `stages.json`.
#[derive(Debug, Serialize, Deserialize)]
struct StagesFile {
    version: String,
    config: Value,
    /// After each stage that is done, the mean loss on the data of every stage.
    losses: Vec<Vec<f64>>,
    /// The tasks that were unsolved when the present stage began, where it asks for that.
    #[serde(default)]
    unsolved: Option<Vec<String>>,
}

/// The stages of a run in a folder.
#[derive(Debug)]
pub struct Stages {
    pub config: RunConfig,
    dir: PathBuf,
    file: StagesFile,
    /// What each stage is measured on: its validation data, or what it trains on where it has none.
    sets: Vec<Dataset>,
}

impl Stages {
    /// Begins in a folder that is made for it.
    ///
    /// # Errors
    /// The folder holds a run, cannot be written, or the settings have no stages.
    pub fn create(config: &RunConfig, dir: &Path) -> Result<Self> {
        if config.stages.is_empty() {
            return Err(Error::refused("stages", "there are none"));
        }
        RunFolder::check_free(dir)?;
        let config = config.anchored();
        let file = StagesFile {
            version: env!("CARGO_PKG_VERSION").into(),
            config: config.tree()?,
            losses: Vec::new(),
            unsolved: None,
        };
        let mut stages = Stages { config, dir: dir.into(), file, sets: Vec::new() };
        // Settings and data that cannot work are found before anything is written.
        for number in 0..stages.count() {
            let config = stages.config_of(number)?;
            let files = DataFiles::find(&config.data)?;
            let validates = files.valid.is_some() || config.train.valid_share.is_some();
            let checked = config.train.check_patience(validates);
            checked.map_err(|error| error.rename(|field| format!("{field} of stage {}", number + 1)))?;
        }
        stages.read_sets()?;
        std::fs::create_dir_all(dir)
            .map_err(|error| Error::file(dir, format!("cannot be created: {error}")))?;
        stages.write()?;
        Ok(stages)
    }

    /// Whether a folder holds stages.
    pub fn is_at(dir: &Path) -> bool {
        dir.join(STAGES).is_file()
    }

    /// Opens a folder of stages, to go on.
    ///
    /// # Errors
    /// The file is malformed.
    pub fn open(dir: &Path, methods: &Methods) -> Result<Self> {
        let path = dir.join(STAGES);
        let file: StagesFile = crate::io::read_json(&path)?;
        let (config, _) = RunConfig::stored(&file.config, methods)
            .map_err(|error| Error::file(&path, error.to_string()))?;
        let mut stages = Stages { config, dir: dir.into(), file, sets: Vec::new() };
        if stages.file.losses.len() > stages.count() || stages.count() == 0 {
            return Err(Error::file(&path, "has losses of more stages than there are"));
        }
        if stages.done() < stages.count() {
            stages.read_sets()?;
        }
        Ok(stages)
    }

    fn write(&self) -> Result<()> {
        let path = self.dir.join(STAGES);
        let text =
            serde_json::to_vec_pretty(&self.file).map_err(|error| Error::file(&path, error.to_string()))?;
        atomic::write(&path, &text)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.config.stages.len()
    }
    /// How many are done.
    pub fn done(&self) -> usize {
        self.file.losses.len()
    }
    /// The folder of a stage's run, from 0.
    pub fn dir_of(&self, stage: usize) -> PathBuf {
        self.dir.join(format!("{STAGE_PREFIX}{}", stage + 1))
    }
    /// The name of a stage: its task, or its number.
    pub fn name(&self, stage: usize) -> String {
        let task = self.config.stages.get(stage).and_then(|s| s.task.clone());
        task.unwrap_or_else(|| (stage + 1).to_string())
    }
    /// The mean loss on the data of every stage after each that is done.
    pub fn losses(&self) -> &[Vec<f64>] {
        &self.file.losses
    }

    /// By how much the loss of earlier stages is higher at the end than when they were trained, in the mean: forgetting.
    /// None before the second stage is done.
    pub fn forgetting(&self) -> Option<f64> {
        let (last, before) = self.file.losses.split_last()?;
        let rise = before.iter().enumerate().map(|(stage, losses)| last[stage] - losses[stage]);
        (!before.is_empty()).then(|| rise.sum::<f64>() / before.len() as f64)
    }

    /// The settings of a stage's run.
    ///
    /// # Errors
    /// The method has no such stage.
    pub fn config_of(&self, stage: usize) -> Result<RunConfig> {
        let Some(Stage { data, steps, task, .. }) = self.config.stages.get(stage) else {
            return Err(Error::config("stage", stage + 1, format!("at most {}", self.count())));
        };
        let mut config = self.config.clone();
        let mut method = config.method.clone();
        if method.options().tasks().is_some_and(|tasks| tasks.tasks.0.is_empty()) {
            let mut tasks: Vec<String> = Vec::new();
            for name in self.config.stages.iter().filter_map(|s| s.task.clone()) {
                if !tasks.contains(&name) {
                    tasks.push(name);
                }
            }
            method = method.with("tasks", tasks)?;
        }
        config.method = method.set(&method.options().at_stage(stage, task.as_deref()))?;
        config.data = data.clone();
        config.task = task.clone();
        config.train.steps = steps.or(config.train.steps);
        config.stages = Vec::new();
        if stage > 0 {
            config.start_from = Some(self.dir_of(stage - 1));
        }
        Ok(config)
    }

    fn read_sets(&mut self) -> Result<()> {
        let sets = (0..self.count()).map(|stage| stage_set(self.config_of(stage)?));
        self.sets = sets.collect::<Result<_>>()?;
        Ok(())
    }

    /// Gives the samples of all sets the vectors of their conditions, where the method chooses by them.
    fn give_conditions(&mut self, run: &Run) -> Result<()> {
        if run.config().method.options().condition().is_none() {
            return Ok(());
        }
        let text = self.config.text.open(Some(&self.config.model), None)?;
        let model = &run.session.model;
        self.sets.iter_mut().try_for_each(|set| super::give_conditions(set, model, &text.tokenizer))
    }

    /// The tasks of a stage's data whose loss is not below what solves them.
    fn unsolved(&self, run: &Run, stage: usize, below: f64) -> Result<Vec<String>> {
        let losses = run.losses_by_task(&self.sets[stage])?;
        Ok(losses.into_iter().filter(|(_, loss)| *loss >= below).map(|(task, _)| task).collect())
    }

    /// Trains a stage: until its steps are done, until its patience is at its end, until a stop is asked for, or until it has
    /// solved its share of tasks, which is looked at where validation is due.
    ///
    /// # Errors
    /// Those of [`Run::go`].
    pub fn go(
        &mut self,
        stage: usize,
        run: &mut Run,
        stop: &Stop,
        observer: &mut dyn Observer,
    ) -> Result<End> {
        let settings = self.config.stages.get(stage).cloned();
        let Some((settings, below)) = settings.and_then(|s| Some((s.clone(), s.solved_below?))) else {
            return run.go(stop, observer);
        };
        self.give_conditions(run)?;
        if self.file.unsolved.is_none() {
            self.file.unsolved = Some(self.unsolved(run, stage, below)?);
            self.write()?;
        }
        let rule = StageRule { least: settings.least_steps, most: run.steps() };
        loop {
            let next = run.state().step + run.eval_every();
            let end = run.go(&stop.by(next), observer)?;
            if end != End::Stopped {
                return Ok(end);
            }
            let step = run.state().step;
            let unsolved = self.unsolved(run, stage, below)?;
            let before = self.file.unsolved.iter().flatten();
            let newly = before.clone().filter(|task| !unsolved.contains(task)).count();
            if rule.is_over(step, newly, before.count(), self.count() - stage) {
                return Ok(End::Finished);
            }
            if stop.asked() || stop.at.is_some_and(|at| step >= at) {
                return Ok(End::Stopped);
            }
        }
    }

    /// Measures the model after a stage on the data of all, and writes that down.
    ///
    /// # Errors
    /// Data cannot be read, or the device failed.
    pub fn measure(&mut self, run: &Run) -> Result<()> {
        self.give_conditions(run)?;
        let losses = self.sets.iter().map(|set| run.mean_loss(set)).collect::<Result<Vec<_>>>()?;
        self.file.losses.push(losses);
        self.file.unsolved = None;
        self.write()
    }
}
