//! Steps whose routers learn by policy gradient: several draws of each sample in one pass, judged by their losses.

use super::losses::losses_of_samples;
use crate::data::Batch;
use crate::model::Model;
use crate::nn::Pass;
use crate::{Error, Result, Tensor};

/// What each draw's log-probability is to be multiplied by, so that its gradient is the REINFORCE estimate with the other
/// draws as its baseline (Kool et al. 2019): `(L_m - mean over m of L) / (M - 1)` of losses `[M, B]`.
///
/// # Errors
/// There are not at least two draws.
pub fn leave_one_out(losses: &Tensor) -> Result<Tensor> {
    let [draws, samples] = *losses.dims() else {
        return Err(Error::shape("leave_one_out", "losses [M, B]", losses.shape()));
    };
    if draws < 2 {
        return Err(Error::config("draws", draws, "at least 2"));
    }
    let mean = losses.sum_rows()?.reshape(&[samples])?.scale(1.0 / draws as f32)?;
    losses.sub(&mean)?.scale(1.0 / (draws - 1) as f32)
}

/// The loss of a batch in which every sample stands `draws` times, in as many copies of the batch, and what to start the
/// backward pass from.
///
/// Losses are sums over all copies; the estimate for routers is as large: `draws` times that of the mean.
pub(super) fn roots(
    model: &Model,
    batch: &Batch,
    pass: &Pass,
    draws: usize,
    recompute: bool,
) -> Result<(Tensor, Vec<(Tensor, Tensor)>)> {
    let losses = losses_of_samples(model, batch, pass, recompute)?;
    let device = model.device();
    let mut table = Tensor::zeros(device, &[1, losses.len(), 1])?;
    let mut sum = Tensor::zeros(device, &[])?;
    let mut roots = Vec::new();
    for (i, loss) in losses.into_iter().enumerate() {
        table.write_rows(i, &loss.detach().reshape(&[1, 1, 1])?)?;
        sum = sum.add(&loss.detach())?;
        roots.push((loss, Tensor::full(device, &[], 1.0)?));
    }
    if let Some(log_q) = pass.take_log_probability()? {
        let samples = table.len() / draws;
        let weights = leave_one_out(&table.reshape(&[draws, samples])?)?.scale(draws as f32)?;
        let weights = weights.reshape(log_q.dims())?;
        roots.push((log_q, weights));
    }
    Ok((sum, roots))
}
