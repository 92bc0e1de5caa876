//! No choice at all: one expert for every input.

use crate::mixture::{Ask, Router, Routes, Selection};
use crate::{Result, Tensor};

/// A pool of one expert, which every unit gets.
pub struct Single {
    pub linears: usize,
    /// Rank of the expert.
    pub rank: usize,
}

impl Router for Single {
    const UNIT: Routes = Routes::None;

    fn pool(&self) -> (usize, usize) {
        (1, self.rank)
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let units = &ask.pass.units;
        let n = self.linears * units.count();
        let only = Tensor::from_u32(x.device(), &[self.linears, 1, units.count(), 1], &vec![0; n])?;
        Selection::new(only, None, units, 1, self.rank)
    }
}
