//! What a run knows of data: validation, and losses of any set.

use super::Run;
use crate::Result;
use crate::data::Dataset;
use crate::train::NO_TASK;
use crate::train::loss_of;
use crate::train::observe::{End, EvalReport, Observer};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Instant;

impl Run {
    /// Mean loss of the trained tokens of all examples of a set.
    ///
    /// # Errors
    /// The device failed.
    pub fn mean_loss(&self, data: &Dataset) -> Result<f64> {
        self.loss_on(data).map(|(loss, _)| loss)
    }

    /// The same for each task, by its label; samples without one are a task of their own.
    ///
    /// # Errors
    /// The device failed.
    pub fn losses_by_task(&self, data: &Dataset) -> Result<Vec<(String, f64)>> {
        let mut by_task: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, task) in data.tasks.iter().enumerate() {
            by_task.entry(task.as_deref().unwrap_or(NO_TASK)).or_default().push(i);
        }
        let loss = |(task, ids): (&str, Vec<usize>)| Ok((task.to_string(), self.loss_of(data, &ids)?.0));
        by_task.into_iter().map(loss).collect()
    }

    /// The mean loss of all examples, with the number of trained tokens.
    fn loss_on(&self, data: &Dataset) -> Result<(f64, usize)> {
        self.loss_of(data, &(0..data.examples.len()).collect::<Vec<_>>())
    }

    /// The same of some.
    fn loss_of(&self, data: &Dataset, ids: &[usize]) -> Result<(f64, usize)> {
        let mut sum = 0.0;
        let mut trained = 0;
        for ids in ids.chunks(self.config.train.micro_batch) {
            let batch = self.batch(data, ids)?;
            sum += loss_of(&self.session.model, &self.session.adapter, &batch)?;
            trained += batch.trained;
        }
        Ok((sum / trained.max(1) as f64, trained))
    }

    /// Whether so many validations in a row as patience allows had no better loss.
    pub fn is_out_of_patience(&self) -> bool {
        self.config.train.patience.is_some_and(|patience| self.state.validations_without_better() >= patience)
    }

    /// The line of the log that says how the run ended.
    pub(super) fn record_end(&mut self, observer: &mut dyn Observer, end: End) {
        let best = self.state.best.map(|(loss, step)| json!({ "step": step, "loss": loss }));
        let mut line = json!({ "t": "end", "step": self.state.step, "why": end.word(), "best": best });
        if end == End::NoBetter {
            line["validations_without_better"] = json!(self.state.validations_without_better());
        }
        self.record(observer, line);
    }

    /// Validation loss over all its examples; true when it is the lowest so far. One that is not finite never is.
    pub fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<bool> {
        let Some(valid) = &self.valid else { return Ok(false) };
        let began = Instant::now();
        let (loss, trained) = self.loss_on(valid)?;
        let samples = valid.examples.len();
        let step = self.state.step;
        let best = loss.is_finite() && self.state.best.is_none_or(|b| loss < b.0);
        if best {
            self.state.best = Some((loss, step));
        }
        self.state.count_validation();
        // The last validation is known by what it gave.
        let scores = if self.is_finished() {
            observer.score(&self.session.model, &self.session.adapter)?
        } else {
            Vec::new()
        };
        self.evaluated = Some(step);
        let seconds = began.elapsed().as_secs_f64();
        let report = EvalReport { step, loss, tokens: trained, samples, seconds, best, scores };
        let mut line = json!({
            "t": "eval", "step": step, "loss": loss, "ppl": report.perplexity(), "tokens": trained,
            "samples": report.samples, "seconds": seconds, "best": best,
        });
        for (name, value) in &report.scores {
            line["scores"][name] = json!(value);
        }
        self.record(observer, line);
        observer.eval(&report);
        Ok(best)
    }
}
