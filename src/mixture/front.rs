//! The contrastive instruction token of Conditional MixLoRA's release: a learned vector in front of each sample, whose last
//! state is to tell tasks apart.

use super::StateBuild;
use super::losses::sup_con;
use crate::nn::{BeforeForward, Param, Pass};
use crate::{Error, Result, Tensor, options};
use std::sync::Arc;

/// Deviation of the vector's first values: that of embeddings as they are commonly drawn.
const DEVIATION: f32 = 0.02;

options! {
    /// A learned vector in front of each sample.
    pub struct InstrToken {
        /// Whether a learned vector stands in front of each sample, before its first token. Its last state learns to
        /// tell the tasks of a micro-batch apart, which then needs task labels, and samples of one task in one micro-batch.
        /// It stands before all tokens and sees none: what its state knows of a sample are the factors that the sample chose.
        /// With pool = instr routers look at it alone, and all samples choose alike. hidden + 2 more trained values.
        use_contrastive_instr_token: bool = false, "VT-NLP/MixLoRA";
        /// What similarities are divided by in that contrast.
        contrast_temperature: f32 = 0.07, in 0.001.., "arXiv:2004.11362, the authors' code";
    }
}

impl InstrToken {
    /// The vector and its loss, where they are asked for.
    ///
    /// # Errors
    /// The device has no memory for them.
    pub fn before(&self, at: &StateBuild<'_>) -> Result<Option<Arc<dyn BeforeForward>>> {
        if !self.use_contrastive_instr_token {
            return Ok(None);
        }
        let vector = at.normal(vec![("instr_token".into(), 1)], at.site.hidden_size, DEVIATION, true)?;
        let parts = vec![("log_variance_lm".into(), 1), ("log_variance_contrast".into(), 1)];
        let variances = Param::drawn(at.device, parts, 1, true, |_, n| vec![0.0; n])?;
        Ok(Some(Arc::new(Front { vector, variances, temperature: self.contrast_temperature })))
    }
}

/// The vector, and how its contrast `C` and the language model's loss `L` are added:
/// `exp(-v1) C + exp(-v0) L + (v0 + v1) / 2`.
struct Front {
    /// `[1, hidden_size]`
    vector: Param,
    /// v0 and v1, `[2, 1]`
    variances: Param,
    temperature: f32,
}

impl Front {
    /// `exp(-v)` of one of the variances, a scalar.
    fn factor(&self, number: usize) -> Result<Tensor> {
        let variances = self.variances.tensor();
        let index = Tensor::from_u32(variances.device(), &[1], &[number as u32])?;
        variances.gather_rows(&index)?.scale(-1.0)?.exp()?.reshape(&[])
    }
}

impl BeforeForward for Front {
    fn decide(
        &self,
        _x: &Tensor,
        _base: &mut dyn FnMut() -> Result<Tensor>,
        _pass: &Pass,
    ) -> Result<Vec<Tensor>> {
        Ok(Vec::new())
    }

    fn front(&self) -> Option<Tensor> {
        Some(self.vector.tensor())
    }

    fn learn(&self, states: &Tensor, pass: &Pass) -> Result<()> {
        let [b, s, d] = *states.dims() else {
            return Err(Error::shape("states", "[B, S, hidden_size]", states.shape()));
        };
        let tasks = &pass.labels.tasks;
        if tasks.len() != b || tasks.contains(&None) {
            let what = "a sample of the batch has no task, and use_contrastive_instr_token tells tasks apart: give each \
                        line of the data a field 'task'";
            return Err(Error::refused("task", what));
        }
        let at: Vec<u32> = (0..b).map(|sample| (sample * s) as u32).collect();
        let of_token =
            states.reshape(&[b * s, d])?.gather_rows(&Tensor::from_u32(states.device(), &[b], &at)?)?;
        let contrast = sup_con(&of_token, tasks, self.temperature)?.mul(&self.factor(1)?)?;
        pass.add_aux(contrast.add_scaled(&self.variances.tensor().sum()?, 0.5)?);
        Ok(())
    }

    fn loss_factor(&self) -> Result<Option<Tensor>> {
        self.factor(0).map(Some)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.vector.clone(), self.variances.clone()]
    }
}
