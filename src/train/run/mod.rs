//! A run from its first step to its last: data, validation, checkpoints and metrics around a [`Session`].

mod evaluate;
mod fit;
mod save;
mod vision;

use crate::adapter::{Adapter, AdapterOptions, Expert};
use crate::data::{Batch, Dataset, Sampler, SamplerConfig};
use crate::device::Place;
use crate::mixture::Methods;
use crate::nn::Choices;
use crate::train::align::Aligned;
use crate::train::checkpoint::{State, freeze_again, frozen_rows, restore_optimizer};
use crate::train::load::{AT_THE_END, ENOUGH, LoadCounter};
use crate::train::observe::{End, Observer, Progress, Stop};
use crate::train::parts::{Parts, check_prompts};
use crate::train::stored::StoredRun;
use crate::train::{MetricsLog, RunConfig, RunFolder, Session, StepReport};
use crate::{Device, Error, Result, Stream};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Steps between two readings of the routers' choices.
const ROUTER_EVERY: usize = 10;

/// A training run.
pub struct Run {
    pub session: Session,
    config: RunConfig,
    train: Dataset,
    valid: Option<Dataset>,
    pad: u32,
    notes: Vec<String>,
    /// What came of aligning a new projector, where this process did it.
    aligned: Option<Aligned>,
    sampler: Sampler,
    state: State,
    folder: Option<RunFolder>,
    log: Option<MetricsLog>,
    load: LoadCounter,
    steps: usize,
    /// Steps at which the last validation and the last checkpoint were.
    evaluated: Option<usize>,
    saved: Option<usize>,
    /// For the speed shown: when this process began, and at which step.
    began: (Instant, usize),
}

impl Run {
    /// A new run, in a folder that is made for it; without one nothing is written.
    ///
    /// # Errors
    /// An option does not fit the model or the data, or the folder cannot be used.
    pub fn start(parts: Parts, dir: Option<&Path>) -> Result<Self> {
        if let Some(dir) = dir {
            RunFolder::check_free(dir)?;
        }
        let stored = StoredRun::of(&parts)?;
        let mut run = Run::from_the_start(parts)?;
        // Made when nothing can be refused any more, so that a mistyped option does not block the folder.
        if let Some(dir) = dir {
            run.write_to(RunFolder::create(dir, &stored.text()?)?)?;
        }
        Ok(run)
    }

    fn from_the_start(parts: Parts) -> Result<Self> {
        let config = &parts.config;
        let stream = Stream::new(config.train.seed).named("adapter");
        let vision = parts.vision.as_ref();
        let projector = vision.map_or_else(Vec::new, |(vision, _)| vision.config().projector_places());
        let (method, targets) = (&config.method, &config.target_modules);
        let mut adapter = Adapter::attach_beside(&parts.model, &projector, method, targets, stream)?;
        adapter.take_experts(&Expert::open_all(&config.experts, parts.model.config())?, &parts.model)?;
        if let Some(dir) = &config.start_from {
            let methods = Methods::builtin().with(config.method.spec());
            let options = AdapterOptions { methods, ..AdapterOptions::default() };
            let other = Adapter::load_with(dir, &parts.model, &options)?;
            adapter.start_from(&other)?;
            adapter = adapter.with_vision(other.vision().cloned());
        }
        let mut run = Run::build(parts, adapter)?;
        if run.config.start_from.is_none() {
            run.fit()?;
        }
        Ok(run)
    }

    /// Puts the state of a checkpoint back, besides the adapter.
    fn restore(&mut self, dir: &Path) -> Result<()> {
        let state = State::read(dir)?;
        restore_optimizer(&mut self.session.optimizer, dir, state.updates)?;
        freeze_again(self.session.optimizer.params(), &state.frozen_rows)?;
        self.session.restore(state.step);
        self.sampler.restore(state.cursor)?;
        self.began = (Instant::now(), state.step);
        self.saved = Some(state.step);
        self.state = state;
        Ok(())
    }

    /// Goes on with a stored run: parts of the same options or of changed ones. The observer is told when a damaged
    /// checkpoint was passed over.
    ///
    /// # Errors
    /// The base model or the data are others, or no checkpoint can be read.
    pub fn resume(stored: StoredRun, parts: Parts, observer: &mut dyn Observer) -> Result<Self> {
        let now = StoredRun::of(&parts)?;
        let other_base = stored.other_base(&now);
        let folder = stored.same_data(&now)?;
        let latest = folder.latest()?;
        folder.clean();
        let mut run = match latest {
            Some((dir, passed_over)) => {
                passed_over.iter().for_each(|w| observer.warning(w));
                // It refuses another base model, and takes the same one in another precision.
                let methods = Methods::builtin().with(parts.config.method.spec());
                let options = AdapterOptions { methods, ..AdapterOptions::default() };
                let adapter = Adapter::load_with(&dir, &parts.model, &options)?;
                if let Some(e) = other_base {
                    observer.warning(&format!("{e}; its norms are the same, so training goes on with it"));
                }
                let mut run = Run::build(parts, adapter)?;
                run.restore(&dir)?;
                // A process that was killed behind its last save may have left some.
                if passed_over.is_empty() {
                    folder.prune(run.config.train.keep);
                }
                run
            }
            // It was stopped before its first checkpoint.
            None => other_base.map_or_else(|| Run::from_the_start(parts), Err)?,
        };
        folder.write_run(&now.text()?)?;
        run.write_to(folder)?;
        run.record(observer, json!({ "t": "resume", "step": run.state.step }));
        Ok(run)
    }

    fn build(parts: Parts, adapter: Adapter) -> Result<Self> {
        let Parts { config, model, train, valid, vision, pad, notes, .. } = parts;
        let t = &config.train;
        t.check_patience(valid.as_ref().is_some_and(|valid| !valid.examples.is_empty()))?;
        let sizes = SamplerConfig {
            seed: t.seed,
            micro_batch: t.micro_batch,
            grad_accumulation: t.grad_accumulation,
            bucket_steps: t.bucket_steps,
        };
        let sampler = Sampler::new(train.examples.len(), &train.lengths(), sizes)?;
        let steps = t.total_steps(sampler.steps_per_epoch());
        let (session, aligned) = vision::session(model, adapter, vision, &train, t, steps)?;
        [Some(&train), valid.as_ref()].into_iter().flatten().try_for_each(|d| check_prompts(&config, d))?;
        let state = State::default();
        let load = LoadCounter::default();
        let evaluated = None;
        let saved = None;
        let began = (Instant::now(), 0);
        let folder = None;
        let log = None;
        Ok(Run {
            session,
            config,
            train,
            valid,
            pad,
            notes,
            aligned,
            sampler,
            state,
            folder,
            log,
            load,
            steps,
            evaluated,
            saved,
            began,
        })
    }

    fn write_to(&mut self, folder: RunFolder) -> Result<()> {
        let mut log = MetricsLog::open(&folder.path().join("metrics.jsonl"))?;
        log.write(&json!({
            "t": "run", "version": env!("CARGO_PKG_VERSION"), "device": self.device().name(),
            "place": Place::of(self.device()), "steps": self.steps,
            "trained_values": self.session.trained_values(), "examples": self.train.examples.len(),
            "samples": { "train": self.train.counts, "valid": self.valid.as_ref().map(|v| v.counts) },
            "config": self.config.tree()?,
        }))?;
        for text in &self.notes {
            log.write(&self.note_line(text))?;
        }
        if let Some(aligned) = &self.aligned {
            log.write(&json!({ "t": "align", "projector": aligned }))?;
        }
        (self.folder, self.log) = (Some(folder), Some(log));
        Ok(())
    }

    /// Its options.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }
    /// What the user should know before the first step.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
    /// What came of aligning a new projector before the first step.
    pub fn aligned(&self) -> Option<Aligned> {
        self.aligned
    }
    /// Where it stands.
    pub fn state(&self) -> &State {
        &self.state
    }
    /// Steps of the whole run.
    pub fn steps(&self) -> usize {
        self.steps
    }
    /// Examples of a full step: fewer than asked for when there are not that many.
    pub fn effective_batch(&self) -> usize {
        self.sampler.effective_batch()
    }
    /// The examples it trains on.
    pub fn examples(&self) -> usize {
        self.train.examples.len()
    }
    /// Its folder.
    pub fn dir(&self) -> Option<&Path> {
        self.folder.as_ref().map(RunFolder::path)
    }
    /// Steps between validations.
    pub fn eval_every(&self) -> usize {
        self.config.train.eval_every.unwrap_or_else(|| self.steps.div_ceil(20).max(1))
    }
    /// Whether nothing is left to do: all steps are done, or patience is at its end.
    pub fn is_finished(&self) -> bool {
        self.state.step >= self.steps || self.is_out_of_patience()
    }
    fn device(&self) -> &Device {
        self.session.model.device()
    }

    /// Steps until the end, until patience is at its end, until a stop is asked for, or until something is wrong; in
    /// all but the last case a checkpoint is written.
    ///
    /// # Errors
    /// A step fails. A checkpoint that cannot be written is a warning, and an error only at the end.
    pub fn go(&mut self, stop: &Stop, observer: &mut dyn Observer) -> Result<End> {
        while !self.is_finished() {
            if stop.asked() || stop.at.is_some_and(|n| self.state.step >= n) {
                if self.saved != Some(self.state.step) {
                    self.save(observer, false)?;
                }
                return Ok(End::Stopped);
            }
            self.step(observer)?;
        }
        if let Some(text) = self.load.warning(AT_THE_END) {
            self.warn(observer, &text);
        }
        if self.evaluated != Some(self.state.step) {
            let best = self.evaluate(observer)?;
            self.saved = self.saved.filter(|_| !best);
        }
        if self.saved != Some(self.state.step) {
            self.save(observer, self.is_best())?;
        }
        let end = if self.state.step >= self.steps { End::Finished } else { End::NoBetter };
        self.record_end(observer, end);
        Ok(end)
    }

    /// One optimizer step, and what is due after it. None when the step was left out because its loss or gradient is
    /// not finite and that is allowed.
    ///
    /// # Errors
    /// The device fails, or the run diverged; what is needed to look into it is then in `diverged` in the folder.
    pub fn step(&mut self, observer: &mut dyn Observer) -> Result<Option<StepReport>> {
        let began = Instant::now();
        let ids = self.sampler.next_step();
        let batches = ids.iter().map(|ids| self.batch(&self.train, ids)).collect::<Result<Vec<_>>>()?;
        let data_ms = began.elapsed().as_secs_f64() * 1e3;
        let look = self.state.step.is_multiple_of(ROUTER_EVERY);
        let choices: Vec<Choices> =
            batches.iter().map(|_| if look { Choices::record() } else { Choices::Free }).collect();
        let report = match self.session.step_with(&batches, &choices) {
            Ok(report) => Some(report),
            Err(Error::Diverged(what)) if self.state.skipped < self.config.train.max_skipped => {
                self.session.skip();
                self.state.skipped += 1;
                self.warn(observer, &format!("left out: {what}"));
                None
            }
            Err(Error::Diverged(what)) => return Err(Error::Diverged(self.keep_diverged(&what, &ids))),
            Err(e) => return Err(e),
        };
        self.state.step = self.session.steps_done();
        self.state.updates = self.session.optimizer.steps();
        self.state.cursor = self.sampler.cursor();
        self.state.frozen_rows = frozen_rows(self.session.optimizer.params());
        if let Some(r) = &report {
            self.state.tokens += r.tokens as u64;
            self.state.trained_tokens += r.trained_tokens as u64;
            self.report(observer, r, data_ms, began.elapsed().as_secs_f64(), &choices)?;
        }
        self.after_step(observer)?;
        Ok(report)
    }

    /// Writes the line of a step and shows it.
    fn report(
        &mut self,
        observer: &mut dyn Observer,
        r: &StepReport,
        data_ms: f64,
        seconds: f64,
        choices: &[Choices],
    ) -> Result<()> {
        let router = self.load.count(choices)?;
        let tok_s = r.tokens as f64 / seconds;
        let mut line = json!({
            "t": "step", "step": r.step, "epoch": self.sampler.epochs(), "loss": r.loss, "aux_loss": r.aux_loss, "lr": r.learning_rate,
            "grad_norm": r.grad_norm, "tokens": r.tokens, "trained_tokens": r.trained_tokens,
            "tokens_total": self.state.tokens, "tok_s": tok_s,
            "ms": {
                "data": data_ms, "fwd": r.times.forward, "bwd": r.times.backward, "opt": r.times.optimizer,
                "sync": r.times.readback,
            },
        });
        if let Some(rate) = self.config.train.projector_rate() {
            line["projector_lr"] = json!(rate * r.learning_rate);
        }
        if let Some(m) = self.device().memory() {
            let mib = |bytes: u64| if bytes == u64::MAX { Value::Null } else { json!(bytes >> 20) };
            line["mem_mib"] =
                json!({ "device": mib(m.current()), "peak": mib(m.peak()), "budget": mib(m.budget()) });
        }
        if let Some(router) = router {
            line["router"] = json!(router);
        }
        self.record(observer, line);
        if let Some(text) = self.load.warning(ENOUGH) {
            self.warn(observer, &text);
        }
        let done = r.step - self.began.1;
        let left = self.began.0.elapsed().as_secs_f64() / done.max(1) as f64 * (self.steps - r.step) as f64;
        observer
            .step(r, &Progress { steps: self.steps, tokens: self.state.tokens, tok_s, seconds_left: left });
        Ok(())
    }

    /// Validation and checkpoint, if they are due.
    fn after_step(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let step = self.state.step;
        let eval_every = self.eval_every();
        let save_every = self.config.train.save_every.unwrap_or(eval_every);
        let mut best = false;
        if step.is_multiple_of(eval_every) && self.valid.is_some() {
            best = self.evaluate(observer)?;
        }
        if (best || (step.is_multiple_of(save_every) && step < self.steps))
            && let Err(e) = self.save(observer, best)
        {
            self.warn(observer, &format!("no checkpoint was written, training goes on: {e}"));
        }
        Ok(())
    }

    /// Whether the last step is the best one that was validated.
    fn is_best(&self) -> bool {
        self.state.best.is_some_and(|b| b.1 == self.state.step)
    }

    fn batch(&self, data: &Dataset, ids: &[usize]) -> Result<Batch> {
        let examples: Vec<_> = ids.iter().map(|&i| &data.examples[i]).collect();
        Batch::new(&examples, self.config.method.framing(), self.pad, self.device())
    }

    /// Puts something that the user was told into the log.
    pub fn note(&mut self, observer: &mut dyn Observer, text: &str) {
        self.record(observer, self.note_line(text));
    }

    fn note_line(&self, text: &str) -> Value {
        json!({ "t": "note", "step": self.state.step, "text": text })
    }

    /// A line of the log. One that cannot be written is a warning: training is worth more than its log.
    fn record(&mut self, observer: &mut dyn Observer, line: Value) {
        if let Some(Err(e)) = self.log.as_mut().map(|log| log.write(&line)) {
            self.log = None;
            observer.warning(&format!("{e}; nothing more is logged"));
        }
    }

    fn warn(&mut self, observer: &mut dyn Observer, text: &str) {
        self.record(observer, json!({ "t": "warn", "step": self.state.step, "text": text }));
        observer.warning(text);
    }
}
