//! Random numbers for making sets.

use mixlora::Stream;

/// A sequence of random numbers, that of a seed and a name.
pub struct Dice {
    stream: Stream,
    drawn: u32,
}

impl Dice {
    pub fn new(seed: u64, name: &str) -> Self {
        Dice { stream: Stream::new(seed).named(name), drawn: 0 }
    }
    /// A number from 0 to `limit - 1`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.drawn += 1;
        ((u64::from(self.stream.bits(self.drawn)) * limit as u64) >> 32) as usize
    }
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
    /// `count` different entries of a list.
    pub fn some<T: Copy>(&mut self, list: &[T], count: usize) -> Vec<T> {
        let mut left = list.to_vec();
        (0..count).map(|_| left.swap_remove(self.below(left.len()))).collect()
    }
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        (1..list.len()).rev().for_each(|last| list.swap(last, self.below(last + 1)));
    }
}
