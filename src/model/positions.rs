//! Tables of angles for the positions that are used: a model may claim millions.

use crate::ops::rope::Rope;
use crate::{Device, Result};
use std::sync::{Mutex, PoisonError};

/// Positions of the first table at least.
const FIRST: usize = 256;

/// Rotary angles of a model. A longer sequence than any before makes a longer table, with the same values.
pub(super) struct Positions {
    frequencies: Vec<f64>,
    most: usize,
    table: Mutex<Option<Rope>>,
}

impl Positions {
    /// Of a model that has at most so many positions.
    pub fn new(frequencies: Vec<f64>, most: usize) -> Self {
        Positions { frequencies, most, table: Mutex::default() }
    }

    /// Positions of the model.
    pub fn most(&self) -> usize {
        self.most
    }

    /// A table of at least the first `count` positions, which the model has.
    pub fn table(&self, device: &Device, count: usize) -> Result<Rope> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rope) = table.as_ref().filter(|rope| rope.max_positions() >= count) {
            return Ok(rope.clone());
        }
        let length = count.max(FIRST).next_power_of_two().min(self.most);
        let rope = Rope::from_frequencies(device, &self.frequencies, length)?;
        *table = Some(rope.clone());
        Ok(rope)
    }
}
