//! Routers that are fitted to the data before the first step.

use super::Run;
use crate::Result;
use crate::adapter::Bank;
use crate::data::Dataset;
use crate::nn::Prompts;
use crate::tape::no_grad;
use crate::train::losses::plain_pass;
use std::sync::Arc;

/// Samples that a router is fitted to, at most.
const MOST: usize = 1024;
/// Samples that are embedded together.
const TOGETHER: usize = 16;

impl Run {
    /// Fits what the adapter's method fits, and notes how well that went.
    pub(super) fn fit(&mut self) -> Result<()> {
        let sites = self.session.adapter.sites().clone();
        let Some(before) = sites.before().filter(|before| before.fits()) else { return Ok(()) };
        let prompts = self.prompts(&self.train)?;
        before.fit(&prompts)?;
        let (of, shown) = match &self.valid {
            Some(valid) => (self.prompts(valid)?, "validation"),
            None => (prompts, "training"),
        };
        if let Some([right, all]) = before.told_apart(&of)? {
            self.notes.push(format!(
                "the fitted router puts {right} of {all} {shown} prompts into the group of their task"
            ));
        }
        Ok(())
    }

    /// Share of the prompts of a set that a fitted router puts into the group of their task; none where the method has no
    /// such router, or the set no tasks.
    ///
    /// # Errors
    /// A task is unknown, or the device failed.
    pub fn told_apart(&self, data: &Dataset) -> Result<Option<f64>> {
        let sites = self.session.adapter.sites();
        let Some(before) = sites.before().filter(|before| before.fits()) else { return Ok(None) };
        let counts = before.told_apart(&self.prompts(data)?)?;
        Ok(counts.filter(|[_, all]| *all > 0).map(|[right, all]| right as f64 / all as f64))
    }

    /// Pooled prompts of a set, spread evenly over it.
    fn prompts(&self, data: &Dataset) -> Result<Prompts> {
        let model = &self.session.model;
        let count = data.examples.len().min(MOST);
        let chosen: Vec<usize> = (0..count).map(|i| i * data.examples.len() / count).collect();
        let mut rows = Vec::new();
        for ids in chosen.chunks(TOGETHER) {
            let batch = self.batch(data, ids)?;
            let pass = plain_pass(&Bank::from(&self.session.adapter), &batch)?;
            let pooled = no_grad(|| {
                let embedded = batch.embedded(model, &pass)?.map_or_else(|| model.embed(&batch.ids), Ok)?;
                embedded.pool_rows(&batch.units)
            })?;
            rows.extend(pooled.to_f32()?);
        }
        let tasks = chosen.iter().map(|&i| data.tasks[i].as_deref().map(Arc::from)).collect();
        Ok(Prompts { width: model.config().hidden_size, rows, tasks })
    }
}
