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
        Selection::whole(x.device(), &ask.pass.units, self.linears, self.rank)
    }
}
