//! Steps of Conditional MixLoRA on a model's decoder together with its whole projector.

use super::super::config as read_config;
use super::super::trained::{LINEARS, Mixture, SITES, stored_choices};
use super::model::Samples;
use super::{Compare, Measured};
use crate::adapter::{ALL_LINEAR, Adapter};
use crate::data::{Batch, Example};
use crate::io::Checkpoint;
use crate::mixture::{Instance, Pool};
use crate::model::vision::VisionModel;
use crate::model::{Model, Step};
use crate::nn::{Choices, Pass};
use crate::train::{Decay, Schedule, Session, TrainConfig};
use crate::{Error, Result, Stream, Tensor, no_grad};
use serde::Deserialize;
use std::sync::Arc;

/// Bound on losses and gradient norms, relative, and on final values relative to the largest of their tensor.
const BOUND: f64 = 1e-4;
/// Linears before the first attention.
const ALIKE: usize = 3;

#[derive(Deserialize)]
struct Settings {
    #[serde(flatten)]
    mixture: Mixture,
    lr: f64,
    projector_lr: f64,
    steps: usize,
    batches: Vec<Vec<usize>>,
}

/// Replays a file of training with the samples of a model's batch; `vision` has a projector at its start.
pub(super) fn replay(
    compare: &mut Compare<'_>,
    file: &Checkpoint,
    model: &Arc<Model>,
    vision: &Arc<VisionModel>,
    samples: &Samples,
    features: &Tensor,
) -> Result<bool> {
    let settings: Settings = read_config(file)?;
    let most = model.config().hidden_size;
    if settings.mixture.factors > most || settings.batches.iter().flatten().any(|&row| row >= samples.dims[0])
    {
        return Err(Error::file(file.path(), "config has more factors than inputs, or rows that are none"));
    }
    let batch = |rows: &Vec<usize>| -> Result<Batch> {
        let examples: Vec<Example> = rows.iter().map(|&row| samples.example(row)).collect();
        let batch =
            Batch::new(&examples.iter().collect::<Vec<_>>(), Pool::All, samples.pad(), model.device())?;
        let tiles: Vec<u32> =
            rows.iter().flat_map(|&row| samples.tiles_of(row)).map(|tile| tile as u32).collect();
        if tiles.is_empty() {
            return Ok(batch);
        }
        let [all, n, d] = *features.dims() else {
            return Err(Error::shape("features", "[T, N, d]", features.shape()));
        };
        let index = Tensor::from_u32(features.device(), &[tiles.len()], &tiles)?;
        let own = features.reshape(&[all, n * d])?.gather_rows(&index)?.reshape(&[tiles.len(), n, d])?;
        batch.with_pictures(vision, own)
    };
    let batches = settings.batches.iter().map(batch).collect::<Result<Vec<_>>>()?;
    let adapter = Adapter::attach(
        model,
        &settings.mixture.method(file, Instance { pool: Pool::All, ..Instance::default() })?,
        &[ALL_LINEAR.to_string()],
        Stream::new(0),
    )?;
    for param in adapter.params() {
        let width = param.value().shape().last();
        let rows = |part: &str| param.parts().iter().find(|(name, _)| name == part).map(|(_, rows)| *rows);
        param.load(model.device(), |part| {
            settings.mixture.initial(part, rows(part)? * width, width, |linear| linear)
        })?;
    }
    let config = TrainConfig {
        schedule: Schedule {
            learning_rate: settings.lr,
            warmup_steps: 0,
            decay: Decay::Constant,
            ..Schedule::default()
        },
        steps: settings.steps,
        max_grad_norm: None,
        ..TrainConfig::default()
    };
    let rate = settings.projector_lr / settings.lr;
    let mut session = Session::new(model.clone(), adapter, config)?.with_projector(vision, rate)?;
    let mut losses = Vec::new();
    let mut norms = Vec::new();
    let mut same = true;
    let layers = model.config().num_hidden_layers;
    for step in 0..settings.steps {
        let at = step % batches.len();
        let batch = &batches[at];
        let rows = settings.batches[at].len();
        let dims = [layers * LINEARS, 2, rows, settings.mixture.r];
        let stored = file.indices(&format!("chosen.{step}"), &dims, settings.mixture.factors)?;
        let free = chosen(&session, batch)?;
        // In the reference a padded position sees itself beside the real ones, here the real ones alone: behind the first
        // attention, means over all positions differ.
        let compared =
            if batch.tokens == batch.targets.len() { free.len() } else { free.len() / dims[0] * ALIKE };
        same &= free[..compared] == stored[..compared];
        let forced = stored_choices(&stored, layers, [rows, settings.mixture.r], model.device())?;
        let report = session.step_with(std::slice::from_ref(batch), &[forced])?;
        losses.push(report.loss);
        norms.push(report.grad_norm);
    }
    let name = |what: &str| format!("training {what}");
    for (what, got) in [("loss", losses), ("grad_norm", norms)] {
        let want = file.f64(what, &[settings.steps])?;
        let error = got.iter().zip(&want).map(|(got, want)| ((got - want) / want).abs()).fold(0.0, f64::max);
        compare.errors.push(Measured { name: name(what), error, bound: BOUND });
    }
    for param in session.optimizer.params() {
        for (part, _, values) in param.split(&param.value())? {
            let short = part.strip_prefix("model.layers.0.").and_then(|rest| rest.split_once('.'));
            let stored = match short {
                Some((_, rest)) => format!("final.0.{rest}"),
                None => stored_name(file, &part),
            };
            if file.has(&stored) {
                compare.measure(&name(&stored), &file.values_f32(&stored)?, &values, 0.0, BOUND);
            }
        }
    }
    Ok(same)
}

/// The name of a projector's final value, whatever stands before it.
fn stored_name(file: &Checkpoint, part: &str) -> String {
    let ending = format!(".{part}");
    let name = file.names().find(|name| name.starts_with("final.") && name.ends_with(&ending));
    name.unwrap_or_default().to_string()
}

/// What all linears choose of themselves, layer by layer: `[linears, 2, batch, r]`.
fn chosen(session: &Session, batch: &Batch) -> Result<Vec<u32>> {
    let model = &session.model;
    let record = Choices::record();
    let pass = Pass::new(batch.units.clone()).with_adapters(session.adapter.sites().clone());
    let pass = pass.with_choices(record.clone());
    let embedded = batch.embedded(model, &pass)?;
    let step = Step { valid: Some(&batch.valid), ..Step::default() };
    no_grad(|| model.forward(embedded.as_ref().unwrap_or(&batch.ids), &pass, step))?;
    let mut all = Vec::new();
    for layer in 0..model.config().num_hidden_layers {
        for (site, _) in SITES {
            let site = format!("layers.{layer}.{site}");
            let choice = record.get(&site).ok_or_else(|| Error::refused(&site, "has no choice"))?;
            all.extend(choice.to_u32()?);
        }
    }
    Ok(all)
}
