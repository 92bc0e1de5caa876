//! The order in which examples are trained: a permutation per epoch, fixed by the seed.

use crate::rng::Stream;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// The position of training in the data. Together with the seed and the sizes it determines all later steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// The number of the epoch, from 0.
    pub epoch: u64,
    /// The number of examples of this epoch that have been used.
    pub position: usize,
}

/// Sizes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplerConfig {
    pub seed: u64,
    /// The number of examples in one pass of the model.
    pub micro_batch: usize,
    /// The number of micro-batches of an optimizer step.
    pub grad_accumulation: usize,
    /// The number of steps whose examples are sorted by length together to reduce padding; 0 switches this off.
    pub bucket_steps: usize,
}

/// Iterates over the examples, epoch after epoch. No step crosses the end of an epoch: the last one of an epoch may be
/// smaller, and so is every step if there are fewer examples than a step holds.
///
/// ```
/// use mixlora::data::{Sampler, SamplerConfig};
/// let config = SamplerConfig { seed: 0, micro_batch: 2, grad_accumulation: 1, bucket_steps: 0 };
/// let mut sampler = Sampler::new(5, &[], config)?;
/// assert_eq!(sampler.steps_per_epoch(), 3);
/// let mut order = Vec::new();
/// for _ in 0..3 {
///     order.extend(sampler.next_step().concat());
/// }
/// order.sort();
/// assert_eq!(order, [0, 1, 2, 3, 4]);
/// assert_eq!(sampler.cursor().epoch, 1);
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplerConfig,
    lengths: Vec<usize>,
    len: usize,
    cursor: Cursor,
    order: Vec<usize>,
}

impl Sampler {
    /// A sampler of `len` examples; `lengths` are only needed for bucketing.
    ///
    /// # Errors
    /// There is no example, or a size is 0.
    pub fn new(len: usize, lengths: &[usize], config: SamplerConfig) -> Result<Self> {
        if len == 0 || u32::try_from(len.saturating_mul(2)).is_err() {
            return Err(Error::config("data", format!("{len} examples"), "1 to 2^31 - 1 of them"));
        }
        for (field, value) in
            [("micro_batch", config.micro_batch), ("grad_accumulation", config.grad_accumulation)]
        {
            if value == 0 {
                return Err(Error::config(field, 0, "at least 1"));
            }
        }
        if config.bucket_steps > 0 && lengths.len() != len {
            let what = format!("{} lengths for {len} examples", lengths.len());
            return Err(Error::refused("bucket_steps", what));
        }
        let mut sampler =
            Sampler { config, lengths: lengths.into(), len, cursor: Cursor::default(), order: Vec::new() };
        sampler.order = sampler.epoch_order(0);
        Ok(sampler)
    }

    fn step_size(&self) -> usize {
        self.config.micro_batch.saturating_mul(self.config.grad_accumulation)
    }
    /// The number of examples of a full step, at most all of them.
    pub fn effective_batch(&self) -> usize {
        self.step_size().min(self.len)
    }
    /// The number of optimizer steps of one epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.len.div_ceil(self.step_size())
    }
    /// The position of the next step.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }
    /// The number of epochs so far, including the fraction of the current one.
    pub fn epochs(&self) -> f64 {
        self.cursor.epoch as f64 + self.cursor.position as f64 / self.len as f64
    }

    /// Continues from a stored position.
    ///
    /// # Errors
    /// The position is not the start of a step.
    pub fn restore(&mut self, cursor: Cursor) -> Result<()> {
        if cursor.position >= self.len || !cursor.position.is_multiple_of(self.step_size()) {
            let what = format!(
                "position {} is no start of a step with {} examples and {} a step; was the data or the batch changed?",
                cursor.position,
                self.len,
                self.step_size()
            );
            return Err(Error::refused("data position", what));
        }
        self.order = self.epoch_order(cursor.epoch);
        self.cursor = cursor;
        Ok(())
    }

    /// The micro-batches of the next step, as indices of examples.
    pub fn next_step(&mut self) -> Vec<Vec<usize>> {
        let start = self.cursor.position;
        let end = start.saturating_add(self.step_size()).min(self.len);
        let step = self.order[start..end].chunks(self.config.micro_batch).map(<[usize]>::to_vec).collect();
        self.cursor.position = end;
        if end == self.len {
            self.cursor = Cursor { epoch: self.cursor.epoch + 1, position: 0 };
            self.order = self.epoch_order(self.cursor.epoch);
        }
        step
    }

    fn epoch_order(&self, epoch: u64) -> Vec<usize> {
        let stream = Stream::new(self.config.seed).named("data").fork(epoch);
        let mut order: Vec<usize> = (0..self.len).collect();
        shuffle(&mut order, stream);
        let window = self.step_size().saturating_mul(self.config.bucket_steps);
        if window > 0 {
            for (w, part) in order.chunks_mut(window).enumerate() {
                part.sort_by_key(|&i| (self.lengths[i], i));
                // Full micro-batches in random order; a rest stays last.
                let size = self.config.micro_batch.min(part.len());
                let mut batches: Vec<Vec<usize>> = part.chunks_exact(size).map(<[usize]>::to_vec).collect();
                shuffle(&mut batches, stream.named("buckets").fork(w as u64));
                let n = batches.len() * size;
                part[..n].copy_from_slice(&batches.concat());
            }
        }
        order
    }
}

/// Fisher-Yates. 64 random bits a draw: the bias of the reduction is below 2^-32.
fn shuffle<T>(items: &mut [T], stream: Stream) {
    for i in (1..items.len()).rev() {
        let bits = u64::from(stream.bits(2 * i as u32)) << 32 | u64::from(stream.bits(2 * i as u32 + 1));
        let j = ((u128::from(bits) * (i as u128 + 1)) >> 64) as usize;
        items.swap(i, j);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(micro_batch: usize, grad_accumulation: usize, bucket_steps: usize) -> SamplerConfig {
        SamplerConfig { seed: 3, micro_batch, grad_accumulation, bucket_steps }
    }

    #[test]
    fn every_epoch_is_a_permutation_and_another_one() {
        let mut sampler = Sampler::new(11, &[], config(2, 2, 0)).unwrap();
        assert_eq!((sampler.steps_per_epoch(), sampler.effective_batch()), (3, 4));
        let mut epochs = Vec::new();
        for epoch in 0..3 {
            assert_eq!(sampler.cursor(), Cursor { epoch, position: 0 });
            let steps: Vec<Vec<Vec<usize>>> = (0..3).map(|_| sampler.next_step()).collect();
            assert_eq!(steps.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2]);
            assert_eq!(steps[2][1].len(), 1);
            epochs.push(steps.concat().concat());
            let mut sorted = epochs[epoch as usize].clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..11).collect::<Vec<_>>());
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
    }

    #[test]
    fn a_restored_cursor_goes_on_alike() {
        for bucket in [0, 2] {
            let lengths: Vec<usize> = (0..23).map(|i| i * 7 % 13).collect();
            let mut a = Sampler::new(23, &lengths, config(3, 2, bucket)).unwrap();
            for _ in 0..6 {
                a.next_step();
            }
            let mut b = Sampler::new(23, &lengths, config(3, 2, bucket)).unwrap();
            b.restore(a.cursor()).unwrap();
            for _ in 0..9 {
                assert_eq!(a.next_step(), b.next_step());
            }
            assert!(b.restore(Cursor { epoch: 0, position: 23 }).is_err());
            assert!(b.restore(Cursor { epoch: 0, position: 5 }).is_err());
        }
    }

    #[test]
    fn buckets_hold_like_lengths_and_lose_nothing() {
        let lengths: Vec<usize> = (0..40).map(|i| i * 17 % 40).collect();
        let mut sampler = Sampler::new(40, &lengths, config(4, 1, 10)).unwrap();
        let steps: Vec<Vec<usize>> = (0..10).map(|_| sampler.next_step().concat()).collect();
        for step in &steps {
            let l: Vec<usize> = step.iter().map(|&i| lengths[i]).collect();
            assert!(l.iter().max().unwrap() - l.iter().min().unwrap() <= 3, "{l:?}");
        }
        let mut all = steps.concat();
        all.sort_unstable();
        assert_eq!(all, (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn fewer_examples_than_a_step_holds() {
        let mut sampler = Sampler::new(3, &[], config(2, 8, 0)).unwrap();
        assert_eq!((sampler.effective_batch(), sampler.steps_per_epoch()), (3, 1));
        assert_eq!(sampler.next_step().concat().len(), 3);
        assert_eq!(sampler.cursor().epoch, 1);
        assert!(Sampler::new(0, &[], config(1, 1, 0)).is_err());
        assert!(Sampler::new(3, &[], config(0, 1, 0)).is_err());
    }
}
