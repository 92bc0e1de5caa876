//! Token sequences with their trained positions, and padded batches of them.

use crate::mixture::{Pool, Span};
use crate::routing::Units;
use crate::{Device, Error, Result, Tensor};

/// One sample: tokens, and which of them are trained (predicted from the ones before).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Example {
    pub ids: Vec<u32>,
    /// One flag per token. The first token is never trained: nothing comes before it.
    pub trained: Vec<bool>,
    /// Positions at the start that routers may look at: those before the first trained token.
    pub prompt: usize,
}

impl Example {
    /// An example whose prompt ends at its first trained token. Where that is the first or second one (plain text,
    /// with or without a start token), or none is, all positions are the prompt.
    pub fn new(ids: Vec<u32>, mut trained: Vec<bool>) -> Self {
        let prompt = match trained.iter().position(|t| *t) {
            Some(0 | 1) | None => ids.len(),
            Some(n) => n,
        };
        if let Some(first) = trained.first_mut() {
            *first = false;
        }
        Example { ids, trained, prompt }
    }
    /// Number of trained tokens.
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().skip(1).filter(|t| **t).count()
    }
}

/// Examples padded on the right to one length, on a device.
pub struct Batch {
    /// `[B, S]`
    pub ids: Tensor,
    /// The token that each position must predict, u32 `[B * S]`; `u32::MAX` where there is no loss.
    pub targets: Tensor,
    /// 1 at real positions, u32 `[B, S]`.
    pub valid: Tensor,
    /// 1.0 at real positions, `[B * S, 1]`.
    pub weights: Tensor,
    /// Routing units of instance-routed methods.
    pub units: Units,
    /// Real positions.
    pub tokens: usize,
    /// Positions with a loss.
    pub trained: usize,
}

impl Batch {
    /// Pads examples to their longest. `pool` says how instances are pooled for their routers; none where no router
    /// looks at instances, which then need no position to route on.
    ///
    /// # Errors
    /// There is no example, one is empty, or an instance has no position to route on.
    pub fn new(
        examples: &[&Example],
        pool: impl Into<Option<Pool>>,
        pad: u32,
        device: &Device,
    ) -> Result<Self> {
        let (b, s) = (examples.len(), examples.iter().map(|e| e.ids.len()).max().unwrap_or(0));
        if b == 0 || examples.iter().any(|e| e.ids.is_empty() || e.ids.len() != e.trained.len()) {
            return Err(Error::config("batch", "an example is empty, or its flags do not match its tokens"));
        }
        let mut ids = vec![pad; b * s];
        let mut targets = vec![u32::MAX; b * s];
        let mut valid = vec![0u32; b * s];
        for (i, e) in examples.iter().enumerate() {
            let n = e.ids.len();
            ids[i * s..][..n].copy_from_slice(&e.ids);
            valid[i * s..][..n].fill(1);
            for t in 1..n {
                if e.trained[t] {
                    targets[i * s + t - 1] = e.ids[t];
                }
            }
        }
        let spans: Vec<Span> = examples.iter().map(|e| Span { len: e.ids.len(), prompt: e.prompt }).collect();
        let weights: Vec<f32> = valid.iter().map(|&v| v as f32).collect();
        Ok(Batch {
            ids: Tensor::from_u32(device, &[b, s], &ids)?,
            targets: Tensor::from_u32(device, &[b * s], &targets)?,
            valid: Tensor::from_u32(device, &[b, s], &valid)?,
            weights: Tensor::from_f32(device, &[b * s, 1], &weights)?,
            units: pool.into().unwrap_or(Pool::All).units(device, &spans, s)?,
            tokens: spans.iter().map(|s| s.len).sum(),
            trained: targets.iter().filter(|t| **t != u32::MAX).count(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_next_tokens() {
        let a = Example::new(vec![5, 6, 7, 8], vec![false, false, true, true]);
        let b = Example::new(vec![9, 4], vec![false, true]);
        assert_eq!((a.prompt, b.prompt, a.trained_tokens()), (2, 2, 2));
        let batch = Batch::new(&[&a, &b], Pool::Real, 0, &Device::cpu()).unwrap();
        let no = u32::MAX;
        assert_eq!(batch.ids.to_u32().unwrap(), [5, 6, 7, 8, 9, 4, 0, 0]);
        assert_eq!(batch.targets.to_u32().unwrap(), [no, 7, 8, no, 4, no, no, no]);
        assert_eq!(batch.valid.to_u32().unwrap(), [1, 1, 1, 1, 1, 1, 0, 0]);
        assert_eq!((batch.tokens, batch.trained, batch.units.count()), (6, 3, 2));
    }
}
