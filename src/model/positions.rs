//! Tables of angles for the positions that are used: a model may claim millions.

use super::rope::RopeConfig;
use crate::ops::rope::Rope;
use crate::{Device, Result};
use std::sync::{Mutex, PoisonError};

/// Positions of the first table at least.
const FIRST: usize = 256;

/// Angles of one rotation of a model. A longer sequence than any before makes a longer table, with the same values;
/// beyond the border of a longrope it makes another one.
pub(super) struct Positions {
    rope: RopeConfig,
    most: usize,
    /// For sequences up to the border, and beyond it.
    tables: [Mutex<Option<Rope>>; 2],
}

impl Positions {
    /// Of a model that has at most so many positions.
    pub fn new(rope: RopeConfig, most: usize) -> Self {
        Positions { rope, most, tables: Default::default() }
    }

    /// A table of at least the first `count` positions, which the model has, for a sequence of `length` positions.
    pub fn table(&self, device: &Device, count: usize, length: usize) -> Result<Rope> {
        let long = self.rope.border().is_some_and(|border| length > border);
        let mut table = self.tables[usize::from(long)].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rope) = table.as_ref().filter(|rope| rope.max_positions() >= count) {
            return Ok(rope.clone());
        }
        let positions = count.max(FIRST).next_power_of_two().min(self.most);
        let frequencies = self.rope.frequencies(length)?;
        let rope = Rope::from_frequencies(device, &frequencies, positions)?.with_pairs(self.rope.pairs);
        *table = Some(rope.clone());
        Ok(rope)
    }
}
