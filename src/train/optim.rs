//! AdamW over a list of parameters, with the gradient's norm and clipping kept on the device.

use crate::nn::{Param, Rows};
use crate::ops::adamw::{AdamWStep, adamw};
use crate::ops::global_norm::global_norm;
use crate::{Gradients, Result, Tensor};

/// AdamW (Loshchilov & Hutter 2019): state for trained parameters only.
pub struct Optimizer {
    params: Vec<Param>,
    /// What the learning rate of each is multiplied by.
    rates: Vec<f64>,
    /// First and second moments of each parameter.
    moments: Vec<(Tensor, Tensor)>,
    step: u32,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

impl Optimizer {
    /// State of zeros for every trained parameter of the list.
    pub fn new(params: Vec<Param>) -> Result<Self> {
        let mut optimizer = Optimizer {
            params: Vec::new(),
            rates: Vec::new(),
            moments: Vec::new(),
            step: 0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        };
        optimizer.add(params, 1.0)?;
        Ok(optimizer)
    }

    /// Adds the trained parameters of a list as a group of their own, which moves at `rate` times the learning rate.
    ///
    /// # Errors
    /// The device has no memory for their moments.
    pub fn add(&mut self, params: Vec<Param>, rate: f64) -> Result<()> {
        for param in params.into_iter().filter(Param::trainable) {
            let value = param.value();
            let zeros = || Tensor::zeros(value.device(), value.dims());
            self.moments.push((zeros()?, zeros()?));
            self.rates.push(rate);
            self.params.push(param);
        }
        Ok(())
    }

    /// Steps done.
    pub fn steps(&self) -> u32 {
        self.step
    }
    /// The trained parameters, in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }
    /// Both moments of each parameter, in order: what a checkpoint keeps besides the step.
    pub fn moments(&self) -> &[(Tensor, Tensor)] {
        &self.moments
    }
    /// Puts a checkpoint's state back.
    pub fn restore(&mut self, moments: Vec<(Tensor, Tensor)>, step: u32) {
        debug_assert_eq!(moments.len(), self.params.len());
        (self.moments, self.step) = (moments, step);
    }

    /// Norm of `scale * gradients` over all parameters, a scalar on the device.
    pub fn norm(&self, gradients: &Gradients, scale: f64) -> Result<Tensor> {
        let there: Vec<&Tensor> = self.params.iter().filter_map(|p| p.gradient(gradients)).collect();
        global_norm(&there)?.scale(scale as f32)
    }

    /// One update by `scale * gradients`, clipped to `max_norm` where that is given; `norm` is theirs. Parameters
    /// without a gradient stay.
    pub fn update(
        &mut self,
        gradients: &Gradients,
        scale: f64,
        lr: f64,
        norm: &Tensor,
        max_norm: Option<f32>,
    ) -> Result<()> {
        let factor = max_norm.map(|m| norm.clip_factor(m)).transpose()?;
        self.step += 1;
        let step = AdamWStep {
            lr,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: self.weight_decay,
            step: self.step,
            grad_scale: scale,
        };
        for ((p, rate), (m, v)) in self.params.iter().zip(&self.rates).zip(&mut self.moments) {
            let step = AdamWStep { lr: rate * lr, ..step };
            if let Some(g) = p.gradient(gradients) {
                let frozen = p.frozen_rows();
                p.update(|w| {
                    // Weight decay and moments would move rows without a gradient.
                    let before = [Rows::of(w, &frozen)?, Rows::of(m, &frozen)?, Rows::of(v, &frozen)?];
                    adamw(w, m, v, g, factor.as_ref(), &step)?;
                    before.iter().zip([w, m, v]).try_for_each(|(rows, tensor)| rows.put_into(tensor))
                })?;
            }
        }
        Ok(())
    }
}
