//! Losses of a batch: summed, by sample, without training.

use crate::adapter::{Adapter, Bank, Usage};
use crate::data::Batch;
use crate::model::{Model, Step};
use crate::nn::{Choices, Member, Pass};
use crate::{Result, Tensor, no_grad};

/// Sum of the cross-entropy over the trained tokens of a batch.
pub(crate) fn summed_loss(model: &Model, batch: &Batch, pass: &Pass, recompute: bool) -> Result<Tensor> {
    model.loss(&states(model, batch, pass, recompute)?, &batch.targets)
}

/// The loss of each sample of a batch, with its gradient: sums of the cross-entropy over a sample's trained tokens,
/// scalars in the order of the batch. Weighted and added up they are what policy gradients need.
///
/// # Errors
/// The batch does not fit the model, or the device failed.
pub fn losses_by_sample(model: &Model, batch: &Batch, pass: &Pass) -> Result<Vec<Tensor>> {
    losses_of_samples(model, batch, pass, false)
}

/// The same, with layers computed again in the backward pass.
pub(super) fn losses_of_samples(
    model: &Model,
    batch: &Batch,
    pass: &Pass,
    recompute: bool,
) -> Result<Vec<Tensor>> {
    let states = states(model, batch, pass, recompute)?;
    let samples = batch.ids.dims()[0];
    (0..samples).map(|i| model.loss(&states, &batch.targets_of(i)?)).collect()
}

/// The states behind the last norm, a row for each position.
pub(super) fn states(model: &Model, batch: &Batch, pass: &Pass, recompute: bool) -> Result<Tensor> {
    let step = Step { valid: Some(&batch.valid), recompute, ..Step::default() };
    let embedded = batch.embedded(model, pass)?;
    let hidden = model.forward(embedded.as_ref().unwrap_or(&batch.ids), pass, step)?;
    hidden.reshape(&[batch.targets.len(), model.config().hidden_size])
}

/// Sum of the cross-entropy over the trained tokens of a batch, without training, of a model with an adapter, several
/// ([`Bank`]) or none.
///
/// # Errors
/// The batch does not fit the model, or the device failed.
pub fn loss_of(model: &Model, adapters: impl Into<Bank>, batch: &Batch) -> Result<f64> {
    let pass = plain_pass(&adapters.into(), batch)?;
    no_grad(|| summed_loss(model, batch, &pass, false))?.item()
}

/// The same for each sample of a batch, in its order.
///
/// # Errors
/// The batch does not fit the model, or the device failed.
pub fn losses_of(model: &Model, adapters: impl Into<Bank>, batch: &Batch) -> Result<Vec<f64>> {
    let pass = plain_pass(&adapters.into(), batch)?;
    let losses = no_grad(|| losses_of_samples(model, batch, &pass, false))?;
    losses.iter().map(Tensor::item).collect()
}

/// The loss of a batch as [`loss_of`] gives it; what the adapter's routers chose is counted.
///
/// # Errors
/// The batch does not fit the model, or the device failed.
pub fn count_usage(model: &Model, adapter: &Adapter, batch: &Batch, usage: &mut Usage) -> Result<f64> {
    let record = Choices::record();
    let pass = plain_pass(&Bank::from(adapter), batch)?.with_choices(record.clone());
    let loss = no_grad(|| summed_loss(model, batch, &pass, false))?.item()?;
    usage.count(&record, &batch.weights.to_f32()?)?;
    Ok(loss)
}

/// A pass over a batch without training. Where several adapters act, each has the units of its own pooling.
pub(crate) fn plain_pass(bank: &Bank, batch: &Batch) -> Result<Pass> {
    let several = bank.adapters().len() > 1;
    let member = |(adapter, scale): &(Adapter, f32)| {
        let units = match adapter.pool() {
            Some(pool) if several => batch.units_by(pool)?,
            _ => batch.units.clone(),
        };
        Ok(Member::new(adapter.sites().clone(), *scale, units))
    };
    let members = bank.adapters().iter().map(member).collect::<Result<Vec<_>>>()?;
    Ok(Pass::new(batch.units.clone()).with_labels(batch.labels.clone()).with_bank(members))
}
