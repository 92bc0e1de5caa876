//! What routers return: which factors each routing unit chose, and how strongly.

use super::slots::{Slots, Units};
use crate::{Device, Error, Result, Tensor};
use std::sync::{Arc, OnceLock};

/// Rows of a single entry from which its products are dense ones: below, to read the pool as it is costs less.
const DENSE_FROM: usize = 32;

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
    /// Pool rows of one linear on A's side, where they are not those of B's.
    rows_of_a: Option<usize>,
    /// Gates of all entries for every row, `[M, L, E]`, of a dense selection.
    row_gates: Option<Tensor>,
    /// 1 where an entry acts, 0 elsewhere, `[M, L, E]`, where the choices do not say it.
    mask: Option<Tensor>,
    /// What of a block's input takes the place of its output, `[M, 1]`: 0 where the experts give it.
    passed: Option<Tensor>,
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
        let units = units.clone();
        let lists = Arc::default();
        Ok(Selection {
            idx,
            gates,
            units,
            factors,
            block,
            rows_of_a: None,
            row_gates: None,
            mask: None,
            passed: None,
            lists,
        })
    }

    /// Every row takes every entry, times a gate of its own: `gates [M, L, E]`, of entries of `block` pool rows each, for
    /// rows in any units. An entry that does not act has the gate 0; `mask [M, L, E]` has a 1 where one acts, none where all do.
    ///
    /// Products with the pools are those of one update of rank `E * block`: dense ones, without a gather.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn dense(gates: Tensor, mask: Option<Tensor>, units: &Units, block: usize) -> Result<Self> {
        const OP: &str = "selection";
        let [_, linears, entries] = *gates.dims() else {
            return Err(Error::shape(OP, "gates [M, L, E]", gates.shape()));
        };
        if let Some(mask) = mask.as_ref().filter(|mask| mask.dims() != gates.dims()) {
            return Err(Error::shape(OP, format!("a mask {}", gates.shape()), mask.shape()));
        }
        let whole = Selection::whole(gates.device(), units, linears, entries * block)?;
        Ok(Selection { row_gates: Some(gates), mask, ..whole })
    }

    /// All pool rows for every row: nothing is chosen.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub(crate) fn whole(device: &Device, units: &Units, linears: usize, pool_rows: usize) -> Result<Self> {
        let count = units.count();
        let all = Tensor::from_u32(device, &[linears, 1, count, 1], &vec![0; linears * count])?;
        Selection::new(all, None, units, 1, pool_rows)
    }

    /// Choices `[L, P, G, K]`.
    pub fn idx(&self) -> &Tensor {
        &self.idx
    }
    /// Gates `[L, G, K]`; none where every gate is 1.
    pub fn gates(&self) -> Option<&Tensor> {
        self.gates.as_ref()
    }
    /// Gates `[M, L, E]` of a selection of every entry for every row.
    pub fn row_gates(&self) -> Option<&Tensor> {
        self.row_gates.as_ref()
    }
    /// What a record keeps: the choices, u32 `[L, P, G, K]`; of a dense selection its mask, f32 `[M, L, E]`, or nothing
    /// where all entries act.
    pub fn record(&self) -> Option<&Tensor> {
        match (&self.mask, &self.row_gates) {
            (Some(mask), _) => Some(mask),
            (None, Some(_)) => None,
            (None, None) => Some(&self.idx),
        }
    }
    /// The same, with a mask of the entries that act: the others have the gate 0.
    pub(crate) fn with_mask(self, mask: Tensor) -> Self {
        Selection { mask: Some(mask), ..self }
    }
    /// The same, with what of a block's input takes the place of its output, `[M, 1]`.
    pub(crate) fn with_passed(self, passed: Tensor) -> Self {
        Selection { passed: Some(passed), ..self }
    }
    /// What of a block's input takes the place of its output.
    pub(crate) fn passed(&self) -> Option<&Tensor> {
        self.passed.as_ref()
    }
    /// The same choices among entries of so many pool rows each.
    pub(crate) fn with_block(self, block: usize) -> Self {
        Selection { block, ..self }
    }
    /// The same choices of two sides, of which A's has a pool of so many rows for each linear.
    ///
    /// # Errors
    /// On a host device: a choice of A that is too large.
    pub(crate) fn with_rows_of_a(self, rows: usize) -> Result<Self> {
        let [_, sides, units, k] = *self.idx.dims() else { return Ok(self) };
        if let crate::tensor::Storage::Host(_) = &*self.idx.storage {
            let mut of_a = self.idx.u32().chunks((units * k).max(1)).step_by(sides).flatten();
            if let Some(e) = of_a.find(|&&e| e as usize >= rows) {
                let found = format!("choice {e}");
                return Err(Error::shape("selection", format!("choices among {rows} rows of A"), found));
            }
        }
        Ok(Selection { rows_of_a: Some(rows), ..self })
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
    /// Pool rows of one linear on B's side.
    pub(crate) fn pool_rows(&self) -> usize {
        self.factors * self.block
    }
    /// Pool rows of one linear on A's side.
    pub(crate) fn pool_rows_a(&self) -> usize {
        self.rows_of_a.unwrap_or(self.pool_rows())
    }
    /// The slots of all linears on side A, in a stacked pool.
    pub(crate) fn slots_a(&self) -> Slots {
        Slots { pool_rows: self.pool_rows_a(), ..self.slots(0, self.linears(), 0) }
    }
    /// The slots of one linear on side B, in its own pool.
    pub(crate) fn slots_b(&self, linear: usize) -> Slots {
        self.slots(linear, 1, self.idx.dims()[1] - 1)
    }
    fn slots(&self, first: usize, count: usize, side: usize) -> Slots {
        let idx = self.idx.clone();
        let units = self.units.clone();
        let one = self.factors == 1 && self.gates.is_none();
        let dense = self.row_gates.is_some() || (one && self.block >= DENSE_FROM);
        Slots { idx, units, first, count, side, block: self.block, pool_rows: self.pool_rows(), dense }
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
