//! Which rows of a factor pool each input row uses: the indexing that all mixture ops share.
//!
//! Rows `x [M, d]` belong to routing units (an instance, a token). For each unit a router chose factors, kept as
//! `idx [L, P, G, K]`: L linears that read the same input, P sides (0 for A; the last for B), G units, K choices.
//! A choice may stand for a block of consecutive pool rows (a LoRA expert of rank `block`).

use crate::rng::Stream;
use crate::simd::vectorised;
use crate::{Device, Error, Result, Tensor};
use std::sync::Arc;

/// Routing units: ranges of rows, and how each row enters its unit's pooled routing input.
#[derive(Clone)]
pub struct Units(Arc<Inner>);

struct Inner {
    rows: usize,
    start: Vec<u32>,
    /// Absent for tokens, where unit = row.
    device: Option<Ranges>,
}

struct Ranges {
    start: Tensor,
    row_unit: Tensor,
    weight: Tensor,
}

impl Units {
    /// Every row is its own unit.
    pub fn tokens(rows: usize) -> Self {
        Units(Arc::new(Inner { rows, start: Vec::new(), device: None }))
    }

    /// `batch` units of `seq` rows each, pooled by their mean.
    pub fn instances(device: &Device, batch: usize, seq: usize) -> Result<Self> {
        let start: Vec<usize> = (0..=batch).map(|b| b * seq).collect();
        Self::ranges(device, &start, &vec![1.0 / seq.max(1) as f32; batch * seq])
    }

    /// Units of given row ranges: unit g holds rows `start[g] .. start[g+1]`; `weight` says how each row enters
    /// the pooled routing input of its unit (1/T for a mean over T rows, 0 for padding, 1 for one chosen row).
    ///
    /// # Errors
    /// The ranges do not start at 0, decrease, or end elsewhere than at `weight.len()`.
    pub fn ranges(device: &Device, start: &[usize], weight: &[f32]) -> Result<Self> {
        let rows = weight.len();
        let fine = start.first() == Some(&0)
            && start.windows(2).all(|w| w[0] <= w[1])
            && start.last() == Some(&rows)
            && rows <= crate::shape::MAX_ELEMENTS;
        if !fine {
            return Err(Error::shape("units", format!("ranges that tile {rows} rows"), format!("{start:?}")));
        }
        let mut row_unit = Vec::with_capacity(rows);
        for (g, w) in start.windows(2).enumerate() {
            row_unit.resize(row_unit.len() + w[1] - w[0], g as u32);
        }
        let start: Vec<u32> = start.iter().map(|&s| s as u32).collect();
        let ranges = Ranges {
            start: Tensor::from_u32(device, &[start.len()], &start)?,
            row_unit: Tensor::from_u32(device, &[rows], &row_unit)?,
            weight: Tensor::from_f32(device, &[rows], weight)?,
        };
        Ok(Units(Arc::new(Inner { rows, start, device: Some(ranges) })))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.0.rows
    }
    /// Number of units.
    pub fn count(&self) -> usize {
        if self.is_tokens() { self.0.rows } else { self.0.start.len() - 1 }
    }
    /// True when every row is its own unit.
    pub fn is_tokens(&self) -> bool {
        self.0.device.is_none()
    }
    /// The rows of a unit.
    pub fn range(&self, unit: usize) -> std::ops::Range<usize> {
        if self.is_tokens() {
            unit..unit + 1
        } else {
            self.0.start[unit] as usize..self.0.start[unit + 1] as usize
        }
    }
    /// The unit of every row, `[M]`; absent for tokens.
    pub(crate) fn row_unit(&self) -> Option<&Tensor> {
        self.0.device.as_ref().map(|r| &r.row_unit)
    }
    /// First row of every unit and the end, `[G+1]`; absent for tokens.
    pub(crate) fn start(&self) -> Option<&Tensor> {
        self.0.device.as_ref().map(|r| &r.start)
    }
    /// Pooling weights `[M]`; absent for tokens.
    pub(crate) fn weight(&self) -> Option<&Tensor> {
        self.0.device.as_ref().map(|r| &r.weight)
    }
}

impl std::fmt::Debug for Units {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Units({} units of {} rows)", self.count(), self.rows())
    }
}

/// Dropout on the adapter branch: a function of the stream and the element's index alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    pub stream: Stream,
    pub p: f32,
}

impl Dropout {
    /// What the element is multiplied by: 0 or 1/(1-p).
    pub(crate) fn factor(&self, index: usize) -> f32 {
        if self.stream.uniform(index as u32) < self.p { 0.0 } else { 1.0 / (1.0 - self.p) }
    }
    /// `out = factor x`, where the first element has index `first`. Fast in functions that are compiled for vectors; from
    /// others call [`drop_values`].
    #[inline(always)]
    pub(crate) fn apply(self, first: usize, x: &[f32], out: &mut [f32]) {
        let kept = 1.0 / (1.0 - self.p);
        self.stream.uniforms(first as u32, out);
        out.iter_mut().zip(x).for_each(|(out, x)| *out = if *out < self.p { 0.0 } else { kept } * x);
    }
    /// Key words, probability, and the factor of kept elements; zeros without dropout.
    pub(crate) fn params(this: &Option<Dropout>) -> ([u32; 2], f32, f32) {
        match this {
            Some(d) => (d.stream.words(), d.p, 1.0 / (1.0 - d.p)),
            None => ([0; 2], 0.0, 1.0),
        }
    }
}

vectorised! {
    /// [`Dropout::apply`].
    pub(crate) fn drop_values(dropout: Dropout, first: usize, x: &[f32], out: &mut [f32]) {
        dropout.apply(first, x, out);
    }
}

/// A choice of pool rows for `count` linears, from linear `first` on, on one side.
#[derive(Debug, Clone)]
pub(crate) struct Slots {
    /// `[L, P, G, K]`
    pub idx: Tensor,
    pub units: Units,
    pub first: usize,
    pub count: usize,
    pub side: usize,
    pub block: usize,
    /// Pool rows per linear; the pools of several linears are stacked.
    pub pool_rows: usize,
    /// Every row takes all pool rows, at most times gates of its own: on the CPU, products with the pool are dense ones.
    pub dense: bool,
}

impl Slots {
    /// Slots of one linear: choices times block.
    pub fn per_linear(&self) -> usize {
        self.idx.dims()[3] * self.block
    }
    /// Slots in all.
    pub fn width(&self) -> usize {
        self.count * self.per_linear()
    }
    /// Column of the first slot in an array over the slots of all L linears.
    pub fn first_column(&self) -> usize {
        self.first * self.per_linear()
    }
    /// Slots of all L linears.
    pub fn all_columns(&self) -> usize {
        self.idx.dims()[0] * self.per_linear()
    }
    /// `(linears, sides, units, choices)`
    pub fn dims(&self) -> (usize, usize, usize, usize) {
        let d = self.idx.dims();
        (d[0], d[1], d[2], d[3])
    }
    /// What kernels need: first index, step per linear, choices, block, pool rows per linear.
    pub fn params(&self) -> [u32; 5] {
        let (_, p, g, k) = self.dims();
        let base = (self.first * p + self.side) * g * k;
        [base, p * g * k, k, self.block, self.pool_rows].map(|v| v as u32)
    }
    /// For host lanes.
    pub fn view(&self) -> SlotView<'_> {
        SlotView {
            idx: self.idx.u32(),
            row_unit: self.units.row_unit().map(|t| t.u32()),
            params: self.params().map(|v| v as usize),
            count: self.count,
        }
    }
    /// Where the gate of slot `j` of a row stands in `gates [L, G, K]`.
    pub fn gate_index(&self, row: usize, j: usize) -> usize {
        let (_, _, g, k) = self.dims();
        let unit = self.units.row_unit().map_or(row, |u| u.u32()[row] as usize);
        let per = self.per_linear();
        (self.first + j / per) * g * k + unit * k + j % per / self.block
    }
    /// Checks that a pool and a slot array fit.
    pub fn check(&self, op: &'static str, rows: usize, pool: &Tensor) -> Result<()> {
        if rows != self.units.rows() {
            return Err(Error::shape(op, format!("{} rows, which the units cover", self.units.rows()), rows));
        }
        let (l, p, g, _) = self.dims();
        if g != self.units.count() || self.first + self.count > l || self.side >= p {
            return Err(Error::shape(op, format!("a selection for {:?}", self.units), self.idx.shape()));
        }
        if pool.dims()[0] < self.count * self.pool_rows {
            return Err(Error::shape(op, format!("a pool large enough for {self:?}"), pool.shape()));
        }
        Ok(())
    }
}

/// [`Slots`] in host memory.
#[derive(Clone, Copy)]
pub(crate) struct SlotView<'a> {
    idx: &'a [u32],
    row_unit: Option<&'a [u32]>,
    params: [usize; 5],
    count: usize,
}

impl SlotView<'_> {
    /// Entries of each pool.
    pub fn entries(&self) -> usize {
        let [_, _, _, block, pool_rows] = self.params;
        pool_rows / block
    }
    /// The entries that a row chose for a linear of these slots.
    pub fn chosen(&self, row: usize, linear: usize) -> &[u32] {
        let [base, step, k, ..] = self.params;
        let unit = self.row_unit.map_or(row, |u| u[row] as usize);
        &self.idx[base + linear * step + unit * k..][..k]
    }
    /// The pool row of slot `j` of a row.
    pub fn pick(&self, row: usize, j: usize) -> usize {
        let [base, step, k, block, pool_rows] = self.params;
        let unit = self.row_unit.map_or(row, |u| u[row] as usize);
        let l = j / (k * block);
        let s = j % (k * block);
        let e = self.idx[base + l * step + unit * k + s / block] as usize;
        (l * pool_rows) + e * block + s % block
    }
    /// The pool rows of all slots of a row, in order: [`pick`](Self::pick) without its divisions.
    pub fn picks(&self, row: usize, into: &mut Vec<usize>) {
        let [_, _, _, block, pool_rows] = self.params;
        into.clear();
        for l in 0..self.count {
            for &e in self.chosen(row, l) {
                let first = l * pool_rows + e as usize * block;
                into.extend(first..first + block);
            }
        }
    }
}
