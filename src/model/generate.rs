//! Generation: the prompt at once, then token by token over the key/value cache.

use super::{KvCache, Llama, Step};
use crate::nn::Pass;
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
        if o.top_k > 0 && o.top_k < order.len() {
            order.select_nth_unstable_by(o.top_k - 1, best);
            order.truncate(o.top_k);
        }
        order.sort_unstable_by(best);
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

/// Sequences being generated together: one, or a batch of equally long ones.
pub struct Generation<'a> {
    model: &'a Llama,
    cache: KvCache,
    rows: usize,
    logits: Vec<f32>,
}

impl<'a> Generation<'a> {
    /// Sequences without a token yet.
    pub fn new(model: &'a Llama, rows: usize) -> Self {
        Generation { model, cache: KvCache::default(), rows, logits: Vec::new() }
    }

    /// Runs tokens `[rows, n]`, which come behind those before. `pass` decides what adapters do; its units must cover
    /// `rows * n` rows.
    ///
    /// # Errors
    /// There are no tokens, they do not divide into the rows, or the model's context is full.
    pub fn push(&mut self, tokens: &[u32], pass: &Pass) -> Result<()> {
        let n = tokens.len() / self.rows.max(1);
        if n == 0 || n * self.rows != tokens.len() {
            let what = format!("{} tokens for {} sequences", tokens.len(), self.rows);
            return Err(Error::config("prompt", what));
        }
        no_grad(|| {
            let device = self.model.device();
            let ids = Tensor::from_u32(device, &[self.rows, n], tokens)?;
            let step = Step { cache: Some(&mut self.cache), ..Step::default() };
            let hidden = self.model.forward(&ids, pass, step)?;
            // Only the last positions have a next token to choose.
            let last: Vec<u32> = (1..=self.rows).map(|r| (r * n - 1) as u32).collect();
            let last = Tensor::from_u32(device, &[self.rows], &last)?;
            let d = self.model.config().hidden_size;
            let last = hidden.reshape(&[tokens.len(), d])?.gather_rows(&last)?;
            self.logits = self.model.logits(&last)?.to_f32()?;
            Ok(())
        })
    }

    /// Logits of the next token of a sequence; empty before the first tokens.
    pub fn logits(&self, row: usize) -> &[f32] {
        let v = self.model.config().vocab_size;
        self.logits.get(row * v..(row + 1) * v).unwrap_or(&[])
    }
    /// Where it runs.
    pub fn device(&self) -> &crate::Device {
        self.model.device()
    }
    /// Positions so far.
    pub fn len(&self) -> usize {
        self.cache.len()
    }
    /// True before the first tokens.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }
    /// Positions that are left.
    pub fn room(&self) -> usize {
        self.model.config().max_positions().saturating_sub(self.len())
    }
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
