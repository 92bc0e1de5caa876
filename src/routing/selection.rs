//! What routers return: which factors each routing unit chose, and how strongly.

use super::slots::{Slots, Units};
use crate::{Error, Result, Tensor};
use std::sync::{Arc, OnceLock};

/// Choices sorted by factor, for every linear and side of a selection, on a GPU.
#[derive(Debug, Clone)]
pub(crate) struct Lists {
    /// `[L, P, E+1]`
    pub starts: Tensor,
    /// `[L, P, G*K]`: unit * K + choice, ascending within a factor.
    pub pairs: Tensor,
}

/// What a router returns for the L linears that read one input: which factors, and how strongly.
#[derive(Debug, Clone)]
pub struct Selection {
    idx: Tensor,
    gates: Option<Tensor>,
    units: Units,
    factors: usize,
    block: usize,
    lists: Arc<OnceLock<Lists>>,
}

impl Selection {
    /// Choices `idx [L, P, G, K]` among `factors` entries of `block` pool rows each, with gates `[L, G, K]`.
    /// Side 0 is A; the last side is B (P = 1: B uses A's choice).
    ///
    /// # Errors
    /// The shapes do not fit each other or the units; on a host device also a choice that is too large. On a GPU such a
    /// choice counts as the last factor.
    pub fn new(
        idx: Tensor,
        gates: Option<Tensor>,
        units: &Units,
        factors: usize,
        block: usize,
    ) -> Result<Self> {
        const OP: &str = "selection";
        idx.require(OP, crate::DType::U32)?;
        let [l, p, g, k] = *idx.dims() else {
            return Err(Error::shape(OP, "choices [L, P, G, K]", idx.shape()));
        };
        if g != units.count() || !(1..=2).contains(&p) || block == 0 {
            return Err(Error::shape(OP, format!("choices for {units:?}, block {block}"), idx.shape()));
        }
        if let Some(t) = &gates
            && t.dims() != [l, g, k]
        {
            return Err(Error::shape(OP, format!("gates of the choices {}", idx.shape()), t.shape()));
        }
        if let Some(e) = idx.first_above(factors) {
            return Err(Error::shape(OP, format!("choices among {factors} factors"), format!("choice {e}")));
        }
        Ok(Selection { idx, gates, units: units.clone(), factors, block, lists: Arc::default() })
    }

    /// Choices `[L, P, G, K]`.
    pub fn idx(&self) -> &Tensor {
        &self.idx
    }
    /// Gates `[L, G, K]`; none where every gate is 1.
    pub fn gates(&self) -> Option<&Tensor> {
        self.gates.as_ref()
    }
    /// The same choices with other gates `[L, G, K]`.
    pub(crate) fn with_gates(self, gates: Tensor) -> Self {
        Selection { gates: Some(gates), ..self }
    }
    /// The routing units.
    pub fn units(&self) -> &Units {
        &self.units
    }
    /// Number of linears.
    pub fn linears(&self) -> usize {
        self.idx.dims()[0]
    }
    /// Entries of each pool.
    pub fn factors(&self) -> usize {
        self.factors
    }
    /// Pool rows of one linear.
    pub(crate) fn pool_rows(&self) -> usize {
        self.factors * self.block
    }
    /// The slots of all linears on side A, in a stacked pool.
    pub(crate) fn slots_a(&self) -> Slots {
        self.slots(0, self.linears(), 0)
    }
    /// The slots of one linear on side B, in its own pool.
    pub(crate) fn slots_b(&self, linear: usize) -> Slots {
        self.slots(linear, 1, self.idx.dims()[1] - 1)
    }
    fn slots(&self, first: usize, count: usize, side: usize) -> Slots {
        let idx = self.idx.clone();
        let units = self.units.clone();
        Slots { idx, units, first, count, side, block: self.block, pool_rows: self.pool_rows() }
    }
    /// The choices sorted by factor: sorted once by `sort`, then used by every gradient that needs them.
    pub(crate) fn lists(&self, sort: impl FnOnce(&Tensor, usize) -> Result<Lists>) -> Result<&Lists> {
        if let Some(lists) = self.lists.get() {
            return Ok(lists);
        }
        let sorted = sort(&self.idx, self.factors)?;
        Ok(self.lists.get_or_init(|| sorted))
    }
}

impl Tensor {
    /// The first index of a host tensor that is `factors` or more. Indices on a GPU are not looked at.
    pub(crate) fn first_above(&self, factors: usize) -> Option<u32> {
        match &*self.storage {
            crate::tensor::Storage::Host(_) => self.u32().iter().find(|&&e| e as usize >= factors).copied(),
            crate::tensor::Storage::Gpu(_) => None,
        }
    }
}
