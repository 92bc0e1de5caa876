//! Generation: the prompt at once, then token by token over the key/value cache.

use super::{Input, KvCache, Model, Step};
use crate::nn::Pass;
use crate::routing::Units;
use crate::tape::inside;
use crate::{Error, Result, Stream, Tensor, no_grad};
use std::sync::Arc;

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
            return Err(Error::config("temperature", self.temperature, "at least 0"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::config("top_p", self.top_p, "in (0, 1]"));
        }
        Ok(())
    }
}

/// Tokens that are put in order first; a draw seldom needs more.
const FIRST_ORDERED: usize = 64;

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

    /// The next token for these logits. Only as much of the order of tokens is made as the draw needs.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        let o = &self.options;
        let best = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        if o.temperature == 0.0 || logits.is_empty() {
            return (0..logits.len()).min_by(best).unwrap_or(0) as u32;
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
        if o.top_k > 0 && o.top_k < order.len() {
            order.select_nth_unstable_by(o.top_k - 1, best);
            order.truncate(o.top_k);
        }
        let top = logits.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v)) as f64;
        let weight = |i: &usize| ((logits[*i] as f64 - top) / o.temperature as f64).exp();
        let total: f64 = order.iter().map(weight).sum();
        let draw = Stream::new(o.seed).uniform(self.drawn) as f64;
        self.drawn += 1;
        let mut n = FIRST_ORDERED;
        loop {
            n = n.min(order.len());
            if n < order.len() {
                order.select_nth_unstable_by(n, best);
            }
            order[..n].sort_unstable_by(best);
            let sums = order[..n].iter().scan(0.0, |sum, i| {
                *sum += weight(i);
                Some(*sum)
            });
            // What is drawn from: the shortest start of the order that holds top_p of the whole.
            let mass =
                if o.top_p < 1.0 { sums.clone().find(|s| *s >= o.top_p as f64 * total) } else { Some(total) };
            match mass.and_then(|mass| sums.clone().position(|s| draw * mass < s)) {
                Some(at) => return order[at] as u32,
                None if n == order.len() => return order[n - 1] as u32,
                None => n *= 8,
            }
        }
    }
}

/// Sequences being generated together: one, or a batch of equally long ones.
pub struct Generation {
    model: Arc<Model>,
    cache: KvCache,
    rows: usize,
    logits: Vec<f32>,
    /// The tokens of each sequence so far, where the rotation of all of them changes with their number.
    read: Vec<Vec<u32>>,
}

impl Generation {
    /// Sequences without a token yet.
    pub fn new(model: &Arc<Model>, rows: usize) -> Self {
        Generation {
            model: model.clone(),
            cache: KvCache::default(),
            rows,
            logits: Vec::new(),
            read: Vec::new(),
        }
    }

    /// Runs tokens `[rows, n]`, which come behind those before. `pass` decides what adapters do; its units must cover
    /// `rows * n` rows.
    ///
    /// # Errors
    /// There are no tokens, they do not divide into the rows, or the model's context is full: nothing has changed
    /// then. The logits are not finite.
    pub fn push(&mut self, tokens: &[u32], pass: &Pass) -> Result<()> {
        self.run(tokens, None, pass)
    }

    /// The same, where `embedded [rows, n, hidden_size]` enters the first layer in place of the embedded tokens: with rows
    /// of pictures in the places of some.
    ///
    /// # Errors
    /// As [`push`](Generation::push); or the model's rotation changes with the length of a text, so that what was read may
    /// have to be read again.
    pub fn push_embedded(&mut self, tokens: &[u32], embedded: &Tensor, pass: &Pass) -> Result<()> {
        if self.model.config().ropes.iter().any(|rope| rope.border().is_some()) {
            let what = "has a longrope rotation, with which no pictures are read";
            return Err(Error::refused("model", what));
        }
        self.run(tokens, Some(embedded), pass)
    }

    fn run(&mut self, tokens: &[u32], embedded: Option<&Tensor>, pass: &Pass) -> Result<()> {
        self.check(tokens, embedded.is_some())?;
        let (tokens, again) = self.crossing(tokens);
        let units;
        let pass = if again {
            self.cache = KvCache::default();
            units = Units::instances(self.model.device(), self.rows, tokens.len() / self.rows)?;
            &pass.clone().with_units(units)
        } else {
            pass
        };
        let tokens = &tokens[..];
        let n = tokens.len() / self.rows;
        let device = self.model.device();
        let run = || {
            let ids = Tensor::from_u32(device, &[self.rows, n], tokens)?;
            let input = embedded.map_or(Input::Tokens(&ids), Input::Embeddings);
            let step = Step { cache: Some(&mut self.cache), ..Step::default() };
            let hidden = self.model.forward(input, pass, step)?;
            let mut last = hidden.reshape(&[tokens.len(), self.model.config().hidden_size])?;
            if n > 1 {
                // Only the last positions have a next token to choose.
                let at: Vec<u32> = (1..=self.rows).map(|r| (r * n - 1) as u32).collect();
                last = last.gather_rows(&Tensor::from_u32(device, &[self.rows], &at)?)?;
            }
            self.logits = self.model.logits(&last)?.to_f32()?;
            Ok::<(), Error>(())
        };
        inside(device, || no_grad(run))?;
        if self.logits.iter().all(|v| v.is_finite()) {
            Ok(())
        } else {
            let at = self.len() - 1;
            let what =
                format!("its logits behind position {at} are not finite: it or its adapter is damaged");
            Err(Error::refused("model", what))
        }
    }

    /// What is to be run: the tokens, or all that were ever read and these, where the rotation of a longrope changes.
    fn crossing(&mut self, tokens: &[u32]) -> (Vec<u32>, bool) {
        let Some(border) = self.model.config().ropes.iter().find_map(|rope| rope.border()) else {
            return (tokens.to_vec(), false);
        };
        let n = tokens.len() / self.rows;
        let again = !self.is_empty() && self.len() <= border && self.len() + n > border;
        self.read.resize(self.rows, Vec::new());
        self.read.iter_mut().zip(tokens.chunks(n)).for_each(|(read, new)| read.extend(new));
        if again { (self.read.concat(), true) } else { (tokens.to_vec(), false) }
    }

    /// Refuses what [`push`](Generation::push) cannot run.
    pub(crate) fn check(&self, tokens: &[u32], embedded: bool) -> Result<()> {
        let n = tokens.len() / self.rows.max(1);
        if n == 0 || n * self.rows != tokens.len() {
            let what = format!("{} tokens for {} sequences", tokens.len(), self.rows);
            return Err(Error::refused("prompt", what));
        }
        let rows = self.model.config().vocab_size;
        // Those of pictures may be no tokens of the model.
        if let Some(id) = tokens.iter().find(|id| **id as usize >= rows && !embedded) {
            let what =
                format!("holds token {id}, which the model does not know: its embedding has {rows} rows");
            return Err(Error::refused("prompt", what));
        }
        if n <= self.room() {
            return Ok(());
        }
        Err(Error::Context { used: self.len(), more: n, most: self.model.config().max_positions() })
    }

    /// Its model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Forgets all tokens.
    pub fn restart(&mut self) {
        self.cache = KvCache::default();
        self.read.clear();
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

    /// The rule written out: all tokens in order, and the shortest start that holds top_p.
    fn by_full_order(logits: &[f32], o: &Sampling, drawn: u32) -> u32 {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        order.truncate(if o.top_k == 0 { logits.len() } else { o.top_k });
        let p: Vec<f64> = order.iter().map(|&i| (logits[i] as f64 / o.temperature as f64).exp()).collect();
        let total: f64 = p.iter().sum();
        let mut kept = 0;
        let mut mass = 0.0;
        while kept < p.len() && (kept == 0 || mass < o.top_p as f64 * total) {
            mass += p[kept];
            kept += 1;
        }
        let draw = Stream::new(o.seed).uniform(drawn) as f64 * mass;
        let mut sum = 0.0;
        let at = p[..kept].iter().position(|v| {
            sum += v;
            draw < sum
        });
        order[at.unwrap_or(kept - 1)] as u32
    }

    #[test]
    fn a_part_of_the_order_draws_what_the_whole_order_draws() {
        let logits = Stream::new(9).normal_vec(3000, 2.0);
        let mut far = 0;
        for (top_k, top_p) in [(0, 1.0), (0, 0.99), (0, 0.2), (100, 1.0), (2000, 0.9), (5000, 0.5)] {
            let o = Sampling { temperature: 2.0, top_k, top_p, seed: 4 };
            let mut sampler = Sampler::new(o.clone()).unwrap();
            for drawn in 0..100 {
                let token = sampler.next(&logits);
                assert_eq!(token, by_full_order(&logits, &o, drawn), "{o:?}");
                far += usize::from(
                    logits.iter().filter(|l| **l > logits[token as usize]).count() > FIRST_ORDERED,
                );
            }
        }
        assert!(far > 50, "{far} draws needed more than the first part");
    }
}
