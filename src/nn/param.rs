//! [`Param`]: a tensor that a module owns and an optimizer may change.

use super::rows::{Rows, joined};
use crate::tape::Node;
use crate::tape::recording;
use crate::tensor::fresh_id;
use crate::{DType, Device, Error, Gradients, Result, Shape, Tensor};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

/// A named tensor of a module, trained or frozen. Cloning gives the same parameter.
///
/// Parameters of linears that read the same input are stacked by rows into one tensor, so that one launch serves
/// them all; `parts` keeps the name of each.
#[derive(Clone)]
pub struct Param(Arc<Inner>);

struct Inner {
    id: u64,
    parts: Vec<(String, usize)>,
    trainable: bool,
    value: RwLock<Tensor>,
    changes: AtomicU64,
    /// Rows that stay as they are, in ascending ranges.
    frozen: RwLock<Vec<Range<usize>>>,
}

impl Param {
    /// A parameter of rows `[rows, cols]` whose parts are named, in order, with their number of rows.
    ///
    /// # Errors
    /// The parts do not add up to the rows.
    pub fn stacked(parts: Vec<(String, usize)>, value: Tensor, trainable: bool) -> Result<Self> {
        let rows: usize = parts.iter().map(|p| p.1).sum();
        if rows != value.dims().first().copied().unwrap_or(1) {
            return Err(Error::shape(
                "param",
                format!("parts of the rows of {}", value.shape()),
                format!("{rows} rows"),
            ));
        }
        let value = RwLock::new(value.detach());
        let frozen = RwLock::default();
        let changes = AtomicU64::new(0);
        Ok(Param(Arc::new(Inner { id: fresh_id(), parts, trainable, value, changes, frozen })))
    }

    /// A parameter `[rows, cols]` whose parts are drawn by name: a part's values do not depend on its neighbours.
    pub fn drawn(
        device: &Device,
        parts: Vec<(String, usize)>,
        cols: usize,
        trainable: bool,
        draw: impl Fn(&str, usize) -> Vec<f32>,
    ) -> Result<Self> {
        let rows = parts.iter().map(|p| p.1).sum();
        // Refuses what has too many elements before it is drawn.
        let shape = Shape::new(&[rows, cols])?;
        if device.is_shapes_only() {
            return Param::stacked(parts, Tensor::undefined(device, shape, DType::F32)?, trainable);
        }
        let values: Vec<f32> = parts.iter().flat_map(|(name, rows)| draw(name, rows * cols)).collect();
        Param::stacked(parts, Tensor::from_f32(device, &[rows, cols], &values)?, trainable)
    }

    /// A parameter with one name.
    pub fn new(name: impl Into<String>, value: Tensor, trainable: bool) -> Result<Self> {
        let rows = value.dims().first().copied().unwrap_or(1);
        Param::stacked(vec![(name.into(), rows)], value, trainable)
    }

    /// The same values as a parameter that is not trained.
    ///
    /// # Errors
    /// None that a parameter which exists can have.
    pub fn untrained(&self) -> Result<Self> {
        Param::stacked(self.0.parts.clone(), self.value(), false)
    }

    /// The value for a computation: a leaf of the tape when it is trained, else without a gradient.
    pub fn tensor(&self) -> Tensor {
        let value = self.value();
        if !self.0.trainable {
            return value;
        }
        let leaf = value.leaf_of(self.0.id);
        let frozen = self.frozen_rows();
        if frozen.is_empty() || !recording(&[&leaf]) {
            return leaf;
        }
        Node::record("frozen_rows", &[&leaf], value, move |dy| {
            let zeros = Rows::zeros(&dy, &frozen)?;
            let mut dy = dy;
            zeros.put_into(&mut dy)?;
            Ok(vec![Some(dy)])
        })
    }

    /// Freezes rows of a part: from now on they have no gradient, and no optimizer step changes them or their moments.
    /// Rows that were frozen before stay so.
    ///
    /// # Errors
    /// The parameter has no such part, or the part fewer rows.
    pub fn freeze_rows(&self, part: &str, rows: Range<usize>) -> Result<()> {
        let mut first = 0;
        for (name, count) in &self.0.parts {
            if name == part && rows.start <= rows.end && rows.end <= *count {
                let mut frozen = self.0.frozen.write().unwrap_or_else(|poisoned| poisoned.into_inner());
                frozen.push(first + rows.start..first + rows.end);
                *frozen = joined(std::mem::take(&mut *frozen));
                return Ok(());
            }
            first += count;
        }
        let what = format!("has no part with rows {rows:?}; its parts are {:?}", self.0.parts);
        Err(Error::refused(part, what))
    }
    /// The frozen rows of a parameter that is trained, in ascending ranges over all parts.
    pub fn frozen_rows(&self) -> Vec<Range<usize>> {
        self.0.frozen.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
    /// The frozen rows by part, as ranges within it.
    pub fn frozen_by_part(&self) -> Vec<(String, Range<usize>)> {
        let frozen = self.frozen_rows();
        let mut first = 0;
        let mut all = Vec::new();
        for (name, count) in &self.0.parts {
            for rows in &frozen {
                let start = rows.start.max(first);
                let end = rows.end.min(first + count);
                if start < end {
                    all.push((name.clone(), start - first..end - first));
                }
            }
            first += count;
        }
        all
    }
    /// The value, without a gradient.
    pub fn value(&self) -> Tensor {
        self.0.value.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
    /// Replaces the value.
    ///
    /// # Errors
    /// The shape is another.
    pub fn set(&self, value: Tensor) -> Result<()> {
        if value.shape() != self.value().shape() {
            return Err(Error::shape(
                "param",
                format!("{} of {}", self.name(), self.value().shape()),
                value.shape(),
            ));
        }
        self.update(|old| {
            *old = value.detach();
            Ok(())
        })
    }
    /// Changes the value in place: when no one else holds it, its memory is reused.
    pub fn update(&self, f: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<()> {
        let mut value = self.0.value.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.0.changes.fetch_add(1, Ordering::Relaxed);
        f(&mut value)
    }
    /// How often the value was changed: what is computed from it alone holds until then.
    pub fn changes(&self) -> u64 {
        let _value = self.0.value.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.0.changes.load(Ordering::Relaxed)
    }
    /// Its gradient of a backward pass; none when it is frozen or the loss does not depend on it.
    pub fn gradient<'a>(&self, gradients: &'a Gradients) -> Option<&'a Tensor> {
        gradients.by_id(self.0.id)
    }
    /// Whether it is trained.
    pub fn trainable(&self) -> bool {
        self.0.trainable
    }
    /// All names.
    pub fn name(&self) -> String {
        self.0.parts.iter().map(|p| p.0.as_str()).collect::<Vec<_>>().join("+")
    }
    /// Name and number of rows of each part.
    pub fn parts(&self) -> &[(String, usize)] {
        &self.0.parts
    }

    /// The parts of a tensor of this parameter's shape, in host memory: name, rows, values.
    pub fn split(&self, tensor: &Tensor) -> Result<Vec<(String, usize, Vec<f64>)>> {
        let values = tensor.to_f64()?;
        let rows: usize = self.0.parts.iter().map(|p| p.1).sum();
        let width = values.len() / rows.max(1);
        let mut first = 0;
        Ok(self
            .0
            .parts
            .iter()
            .map(|(name, n)| {
                let part = values[first * width..(first + n) * width].to_vec();
                first += n;
                (name.clone(), *n, part)
            })
            .collect())
    }

    /// Fills the parts from named values.
    ///
    /// # Errors
    /// A part is missing or has another number of values; the error names it.
    pub fn load(&self, device: &Device, values: impl Fn(&str) -> Option<Vec<f32>>) -> Result<()> {
        let old = self.value();
        let width = old.len() / self.0.parts.iter().map(|p| p.1).sum::<usize>().max(1);
        let mut all = Vec::with_capacity(old.len());
        for (name, rows) in &self.0.parts {
            let part = values(name).ok_or_else(|| Error::refused(name, "tensor is missing"))?;
            if part.len() != rows * width {
                return Err(Error::config(
                    name,
                    format!("{} values", part.len()),
                    format!("{rows} x {width}"),
                ));
            }
            all.extend(part);
        }
        self.set(Tensor::from_f32(device, old.dims(), &all)?)
    }
}

impl std::fmt::Debug for Param {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.0.trainable { "trained" } else { "frozen" };
        write!(formatter, "Param({} {} {kind})", self.name(), self.value().shape())
    }
}
