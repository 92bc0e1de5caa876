//! A run in progress: model, adapter, optimizer, and one step at a time.

use super::losses::{loss_of, plain_pass, summed_loss};
use super::{Optimizer, Schedule, policy, preference};
use crate::adapter::{Adapter, Bank};
use crate::data::Batch;
use crate::model::vision::VisionModel;
use crate::model::{Model, Step};
use crate::nn::{Choices, Pass};
use crate::tape::inside;
use crate::{Error, Gradients, Result, Stream, Tensor, backward, no_grad};
use std::sync::Arc;
use std::time::Instant;

/// What does not change during a run.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    pub schedule: Schedule,
    /// Optimizer steps of the whole run.
    pub steps: usize,
    /// Gradients are clipped to this norm.
    pub max_grad_norm: Option<f32>,
    pub weight_decay: f64,
    pub seed: u64,
    /// Keep only the states between layers and compute the rest again in the backward pass.
    pub recompute: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            schedule: Schedule::default(),
            steps: 100,
            max_grad_norm: Some(1.0),
            weight_decay: 0.0,
            seed: 0,
            recompute: false,
        }
    }
}

/// Milliseconds of the parts of a step. On a GPU they are the times to record the work; waiting for it is `readback`.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct StepTimes {
    pub forward: f64,
    pub backward: f64,
    pub optimizer: f64,
    pub readback: f64,
}

/// What one step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: usize,
    /// Mean cross-entropy of the trained tokens.
    pub loss: f64,
    /// Sum of the auxiliary losses, times their coefficients, averaged over micro-batches.
    pub aux_loss: f64,
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Real tokens of the step.
    pub tokens: usize,
    /// Tokens with a loss.
    pub trained_tokens: usize,
    pub times: StepTimes,
}

/// Milliseconds since it was last asked.
struct Clock(Instant);

impl Clock {
    fn lap(&mut self) -> f64 {
        let before = std::mem::replace(&mut self.0, Instant::now());
        (self.0 - before).as_secs_f64() * 1e3
    }
}

/// A model in training, one optimizer step at a time.
pub struct Session {
    pub model: Arc<Model>,
    pub adapter: Adapter,
    pub optimizer: Optimizer,
    pub config: TrainConfig,
    step: usize,
}

impl Session {
    /// A run at its first step.
    ///
    /// # Errors
    /// An option cannot work, or nothing is trained.
    pub fn new(model: Arc<Model>, adapter: Adapter, config: TrainConfig) -> Result<Self> {
        if config.steps == 0 {
            return Err(Error::config("steps", 0, "at least 1"));
        }
        config.schedule.check(config.steps)?;
        let mut optimizer = Optimizer::new(adapter.params())?;
        optimizer.weight_decay = config.weight_decay;
        if optimizer.params().is_empty() {
            return Err(Error::refused("method", "has nothing to train"));
        }
        Ok(Session { model, adapter, optimizer, config, step: 0 })
    }

    /// The same with the projector of a vision part, which is trained whole, at `rate` times the learning rate.
    ///
    /// # Errors
    /// The device has no memory for its moments.
    pub fn with_projector(mut self, vision: &VisionModel, rate: f64) -> Result<Self> {
        self.optimizer.add(vision.projector().params(), rate)?;
        Ok(self)
    }

    /// Values that are trained, those of a projector among them.
    pub fn trained_values(&self) -> usize {
        self.optimizer.params().iter().map(|p| p.value().len()).sum()
    }

    /// Steps done.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// One optimizer step over micro-batches: losses are summed over all their trained tokens and divided once, so
    /// that the step does not depend on how samples are grouped.
    ///
    /// # Errors
    /// No token is trained, or the loss or the gradient is not finite (nothing has been changed then).
    pub fn step(&mut self, batches: &[Batch]) -> Result<StepReport> {
        let choices = vec![Choices::Free; batches.len()];
        self.step_with(batches, &choices)
    }

    /// Like [`step`](Session::step), with what routers are to do in each micro-batch.
    pub fn step_with(&mut self, batches: &[Batch], choices: &[Choices]) -> Result<StepReport> {
        let device = self.model.device().clone();
        inside(&device, || self.step_here(batches, choices))
    }

    fn step_here(&mut self, batches: &[Batch], choices: &[Choices]) -> Result<StepReport> {
        let draws = self.adapter.method().options().draws();
        let trained = draws * batches.iter().map(|b| b.trained).sum::<usize>();
        if trained == 0 {
            return Err(Error::refused("batch", "no token is trained: there is nothing to learn from"));
        }
        let mut gradients = Gradients::default();
        let mut losses = Vec::new();
        let mut aux_losses = Vec::new();
        let mut times = StepTimes::default();
        let mut clock = Clock(Instant::now());
        let stream = Stream::new(self.config.seed).named("pass").fork(self.step as u64);
        for (i, (batch, choices)) in batches.iter().zip(choices).enumerate() {
            let copies;
            let batch = if draws > 1 {
                copies = batch.repeated(draws)?;
                &copies
            } else {
                batch
            };
            let mut pass = Pass::training(batch.units.clone(), stream.fork(i as u64))
                .with_choices(choices.clone())
                .with_labels(batch.labels.clone())
                .with_adapters(self.adapter.sites().clone());
            pass.valid = Some((batch.weights.clone(), batch.tokens));
            pass.step = Some(self.step);
            let (loss, mut roots) = self.objective(batch, &pass)?;
            let aux = pass.take_aux()?;
            times.forward += clock.lap();
            for a in &aux {
                // An auxiliary loss is a mean: it counts as much as the tokens of its micro-batch.
                roots.push((a.clone(), Tensor::full(a.device(), a.dims(), batch.trained as f32)?));
            }
            let seeds: Vec<(&Tensor, Tensor)> =
                roots.iter().map(|(root, seed)| (root, seed.clone())).collect();
            gradients.accumulate(backward(&seeds)?)?;
            times.backward += clock.lap();
            losses.push(loss);
            aux_losses.extend(aux.iter().map(|a| a.detach()));
        }
        let lr = self.config.schedule.rate(self.step, self.config.steps);
        let norm = self.optimizer.norm(&gradients, 1.0 / trained as f64)?;
        // One readback per step: the loss and the norm decide whether the update may happen.
        let loss = losses.iter().map(Tensor::item).sum::<Result<f64>>()? / trained as f64;
        let grad_norm = norm.item()?;
        times.readback = clock.lap();
        if !loss.is_finite() || !grad_norm.is_finite() {
            let place = self.first_bad(batches)?;
            let step = self.step + 1;
            let what =
                format!("step {step}: loss {loss}, gradient norm {grad_norm}{place}; nothing was changed");
            return Err(Error::Diverged(what));
        }
        self.optimizer.update(&gradients, 1.0 / trained as f64, lr, &norm, self.config.max_grad_norm)?;
        self.adapter.after_step()?;
        self.step += 1;
        times.optimizer = clock.lap();
        // The sum of nothing is -0.
        let aux = 0.0 + aux_losses.iter().map(Tensor::item).sum::<Result<f64>>()? / batches.len() as f64;
        Ok(StepReport {
            step: self.step,
            loss,
            aux_loss: aux,
            grad_norm,
            learning_rate: lr,
            tokens: batches.iter().map(|b| b.tokens).sum(),
            trained_tokens: trained / draws,
            times,
        })
    }

    /// The loss of a pass, and what its backward pass starts from: tensors and their gradients.
    fn objective(&self, batch: &Batch, pass: &Pass) -> Result<(Tensor, Vec<(Tensor, Tensor)>)> {
        let recompute = self.config.recompute;
        let options = self.adapter.method().options();
        if options.draws() > 1 {
            return policy::roots(&self.model, batch, pass, options.draws(), recompute);
        }
        match options.preference().filter(|p| p.contrast_coef > 0.0 && batch.has_rejected()) {
            Some(preference) => preference::roots(&self.model, batch, pass, preference, recompute),
            None => {
                let loss = summed_loss(&self.model, batch, pass, recompute)?;
                let one = Tensor::full(loss.device(), loss.dims(), 1.0)?;
                let factor = self.adapter.sites().before().map(|before| before.loss_factor()).transpose()?;
                let trained = match factor.flatten() {
                    Some(factor) => loss.mul(&factor)?,
                    None => loss.clone(),
                };
                Ok((loss.detach(), vec![(trained, one)]))
            }
        }
    }

    /// Leaves a step out: the schedule goes on, nothing else changes.
    pub fn skip(&mut self) {
        self.step += 1;
    }

    /// Goes on from a checkpoint's step; the optimizer's state is put back apart from this.
    pub(super) fn restore(&mut self, step: usize) {
        self.step = step;
    }

    /// Where the forward pass of these batches is first not finite, to be put behind a report; dropout aside.
    fn first_bad(&self, batches: &[Batch]) -> Result<String> {
        for (i, batch) in batches.iter().enumerate() {
            let mut hidden = Vec::new();
            let step = Step { valid: Some(&batch.valid), hidden: Some(&mut hidden), ..Step::default() };
            let pass = plain_pass(&Bank::from(&self.adapter), batch)?;
            let embedded = batch.embedded(&self.model, &pass)?;
            let input = embedded.as_ref().unwrap_or(&batch.ids);
            no_grad(|| self.model.forward(input, &pass, step))?;
            for (at, state) in hidden.iter().enumerate() {
                if state.to_f32()?.iter().any(|v| !v.is_finite()) {
                    let place = match at {
                        0 => "the embedding".to_string(),
                        n if n + 1 == hidden.len() => "the final norm".to_string(),
                        n => format!("layer {}", n - 1),
                    };
                    return Ok(format!("; micro-batch {i} is first not finite behind {place}"));
                }
            }
        }
        Ok("; all states of the forward pass are finite, so it is the loss or the backward pass".into())
    }

    /// Mean cross-entropy over batches, without training.
    pub fn evaluate(&self, batches: &[Batch]) -> Result<f64> {
        let trained: usize = batches.iter().map(|b| b.trained).sum();
        let sum = batches.iter().map(|b| loss_of(&self.model, &self.adapter, b)).sum::<Result<f64>>()?;
        Ok(sum / trained.max(1) as f64)
    }
}
