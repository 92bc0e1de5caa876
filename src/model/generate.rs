//! Generation: prefill once, then token by token over the key/value cache.

use super::{KvCache, Llama, Step};
use crate::nn::Pass;
use crate::ops::Units;
use crate::{Error, Result, Stream, Tensor, no_grad};

/// How the next token is drawn from the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Only this many most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens whose probabilities add up to this; 1 for all.
    pub top_p: f32,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Refuses values that cannot work.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::config("temperature", format!("is {}, must be at least 0", self.temperature)));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::config("top_p", format!("is {}, must be in (0, 1]", self.top_p)));
        }
        Ok(())
    }
}

/// Draws tokens; the same seed and logits give the same tokens.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: Sampling,
    drawn: u32,
}

impl Sampler {
    /// A sampler at its first token.
    pub fn new(options: Sampling) -> Result<Self> {
        options.check()?;
        Ok(Sampler { options, drawn: 0 })
    }

    /// The next token for these logits.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        let o = &self.options;
        let best = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        if o.temperature == 0.0 {
            return (0..logits.len()).min_by(best).unwrap_or(0) as u32;
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_unstable_by(best);
        if o.top_k > 0 {
            order.truncate(o.top_k);
        }
        let top = logits[order[0]] as f64;
        let mut p: Vec<f64> =
            order.iter().map(|&i| ((logits[i] as f64 - top) / o.temperature as f64).exp()).collect();
        let total: f64 = p.iter().sum();
        let mut kept = 0.0;
        let mut n = 0;
        while n < p.len() && kept < o.top_p as f64 * total {
            kept += p[n];
            n += 1;
        }
        p.truncate(n.max(1));
        let draw = Stream::new(o.seed).uniform(self.drawn) as f64 * p.iter().sum::<f64>();
        self.drawn += 1;
        let mut sum = 0.0;
        let at = p.iter().position(|v| {
            sum += v;
            draw < sum
        });
        order[at.unwrap_or(p.len() - 1)] as u32
    }
}

/// A sequence being generated.
pub struct Generation<'a> {
    model: &'a Llama,
    cache: KvCache,
    logits: Vec<f32>,
}

impl<'a> Generation<'a> {
    /// Runs the prompt. `pass` decides what adapters do; its units must cover the prompt's rows.
    ///
    /// # Errors
    /// The prompt is empty or longer than the model's context.
    pub fn prefill(model: &'a Llama, prompt: &[u32], pass: &Pass) -> Result<Self> {
        if prompt.is_empty() {
            return Err(Error::config("prompt", "is empty"));
        }
        let mut g = Generation { model, cache: KvCache::default(), logits: Vec::new() };
        g.run(prompt, pass)?;
        Ok(g)
    }

    /// Logits of the next token.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }
    /// Positions so far.
    pub fn len(&self) -> usize {
        self.cache.len()
    }
    /// False: a generation starts with a prompt.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Feeds a chosen token.
    pub fn push(&mut self, token: u32, pass: &Pass) -> Result<()> {
        self.run(&[token], pass)
    }

    fn run(&mut self, tokens: &[u32], pass: &Pass) -> Result<()> {
        no_grad(|| {
            let ids = Tensor::from_u32(self.model.device(), &[1, tokens.len()], tokens)?;
            let step = Step { cache: Some(&mut self.cache), ..Step::default() };
            let hidden = self.model.forward(&ids, pass, step)?;
            // Only the last position has a next token to choose.
            let d = self.model.config().hidden_size;
            let last = hidden.reshape(&[tokens.len(), d])?.gather_rows(&Tensor::from_u32(
                self.model.device(),
                &[1],
                &[tokens.len() as u32 - 1],
            )?)?;
            self.logits = self.model.logits(&last)?.to_f32()?;
            Ok(())
        })
    }
}

/// A pass over one row, for decoding steps of models without adapters or with token routing.
pub fn single_row(device: &crate::Device) -> Result<Pass> {
    Ok(Pass::new(Units::instances(device, 1, 1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_follows_its_options() {
        let logits = [0.0, 3.0, 2.0, 3.0, -1.0];
        let mut greedy = Sampler::new(Sampling::default()).unwrap();
        assert_eq!(greedy.next(&logits), 1, "the lowest index of equal logits");
        let hot = Sampling { temperature: 1.0, top_k: 2, seed: 3, ..Sampling::default() };
        let draw = |s: Sampling| {
            let mut s = Sampler::new(s).unwrap();
            (0..50).map(|_| s.next(&logits)).collect::<Vec<_>>()
        };
        let a = draw(hot.clone());
        assert!(a.iter().all(|t| [1, 3].contains(t)) && a.contains(&1) && a.contains(&3));
        assert_eq!(a, draw(hot));
        let narrow = Sampling { temperature: 1.0, top_p: 0.3, ..Sampling::default() };
        assert!(draw(narrow).iter().all(|t| *t == 1));
        assert!(Sampler::new(Sampling { top_p: 0.0, ..Sampling::default() }).is_err());
    }
}
