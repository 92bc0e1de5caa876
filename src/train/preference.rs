//! Steps that also learn from wrong answers: right ones are made likelier than wrong ones.

use super::losses::losses_of_samples;
use crate::data::Batch;
use crate::mixture::Preference;
use crate::model::Model;
use crate::nn::Pass;
use crate::{Result, Tensor};

/// The loss of the right answers of a batch and what to start the backward pass from. Where samples have wrong answers, the
/// pass gets the contrast with them as an auxiliary loss: `contrast_coef mean softplus(-(log p(right) - log p(wrong)) /
/// contrast_tau)`, where the log-probability of an answer is that of all its trained tokens.
pub(super) fn roots(
    model: &Model,
    batch: &Batch,
    pass: &Pass,
    preference: &Preference,
    recompute: bool,
) -> Result<(Tensor, Vec<(Tensor, Tensor)>)> {
    let device = model.device();
    let right = losses_of_samples(model, batch, pass, recompute)?;
    if let Some((whose, wrong)) = batch.rejected()? {
        let mut other = Pass::training(wrong.units.clone(), pass.stream.named("rejected"))
            .with_labels(wrong.labels.clone())
            .with_adapters(pass.adapters.clone());
        other.step = pass.step;
        other.valid = Some((wrong.weights.clone(), wrong.tokens));
        let wrong = losses_of_samples(model, &wrong, &other, recompute)?;
        let weight = preference.contrast_coef / wrong.len() as f32;
        let mut sum = Tensor::zeros(device, &[])?;
        for (i, wrong) in whose.into_iter().zip(&wrong) {
            // A loss is a negative log-probability.
            let behind = right[i].sub(wrong)?.scale(1.0 / preference.contrast_tau)?;
            sum = sum.add(&behind.softplus()?)?;
        }
        pass.add_aux(sum.scale(weight)?);
    }
    let sum = |sum: Tensor, loss: &Tensor| sum.add(&loss.detach());
    let loss = right.iter().try_fold(Tensor::zeros(device, &[])?, sum)?;
    let root = |loss: Tensor| Ok((loss, Tensor::full(device, &[], 1.0)?));
    Ok((loss, right.into_iter().map(root).collect::<Result<_>>()?))
}
