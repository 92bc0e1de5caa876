//! What is timed of an op: sizes of training, and the same computation at a small size for the check before it.
//!
//! The cases of an op are for correctness: odd and small. These are the only ones that are timed.

use super::{Case, Operand};
use crate::{Device, Format, Result, Tensor};
use std::sync::Mutex;

/// Largest side of a dense product that is checked against the reference.
const CHECKED: usize = 256;

/// Arithmetic and memory traffic of one repetition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    pub flops: f64,
    /// Least bytes moved.
    pub bytes: f64,
}

impl Costs {
    fn of(flops: usize, bytes: usize) -> Self {
        Costs { flops: flops as f64, bytes: bytes as f64 }
    }
}

/// The sizes at which ops are timed.
#[derive(Debug, Clone, Copy)]
pub struct TimedSizes<'a> {
    /// Small enough for the reference.
    pub small: bool,
    /// `M, N, K` of dense products.
    pub products: &'a [[usize; 3]],
    /// Formats of frozen weights.
    pub formats: &'a [Format],
}

impl TimedSizes<'_> {
    pub(crate) fn pick<T>(&self, small: T, full: T) -> T {
        if self.small { small } else { full }
    }
    /// Rows and columns of ops that move memory.
    pub(crate) fn plane(&self) -> [usize; 2] {
        self.pick([37, 257], [2048, 2048])
    }
    /// `M, N, K` of dense products.
    pub(crate) fn products(&self) -> impl Iterator<Item = [usize; 3]> {
        let most = self.pick(CHECKED, usize::MAX);
        self.products.iter().map(move |sides| sides.map(|side| side.min(most)))
    }
}

/// A computation on inputs, made for one device.
pub type Computation = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync>;
type Make = Box<dyn Fn(&Device) -> Result<Computation> + Send + Sync>;

/// One computation to be timed.
pub struct Timed {
    pub shape: String,
    pub dtype: &'static str,
    pub inputs: Vec<Operand>,
    /// Puts weights and indices on the device, apart from what is timed.
    pub make: Make,
    pub forward: Costs,
    /// None where there is no derivative, or no work in it.
    pub backward: Option<Costs>,
    /// Length of the longest sum.
    sums: usize,
}

impl Timed {
    /// A computation of so many FLOP and least bytes.
    pub(crate) fn new(
        shape: impl Into<String>,
        inputs: Vec<Operand>,
        (flops, bytes): (usize, usize),
        make: impl Fn(&Device) -> Result<Computation> + Send + Sync + 'static,
    ) -> Self {
        let forward = Costs::of(flops, bytes);
        let make = Box::new(make);
        Timed { shape: shape.into(), dtype: "f32", inputs, make, forward, backward: None, sums: 1 }
    }

    /// A computation that needs nothing besides its inputs.
    pub(crate) fn plain(
        shape: impl Into<String>,
        inputs: Vec<Operand>,
        costs: (usize, usize),
        f: fn(&[Tensor]) -> Result<Tensor>,
    ) -> Self {
        Timed::new(shape, inputs, costs, move |_| Ok(Box::new(move |x| Ok(vec![f(x)?]))))
    }

    /// FLOP and least bytes of the backward pass.
    pub(crate) fn backward(mut self, flops: usize, bytes: usize) -> Self {
        self.backward = Some(Costs::of(flops, bytes));
        self
    }

    /// Names the format of the weights.
    pub(crate) fn dtype(mut self, name: &'static str) -> Self {
        self.dtype = name;
        self
    }

    /// Sets the length of the longest sum.
    pub(crate) fn sums(mut self, n: usize) -> Self {
        self.sums = n;
        self
    }

    /// As a case for the parity harness.
    pub fn case(self) -> Case {
        let Timed { shape, inputs, make, sums, .. } = self;
        // The harness runs a case on two devices, one after the other.
        let made: Mutex<Option<(Device, Computation)>> = Mutex::new(None);
        let run = move |x: &[Tensor]| {
            let device = x[0].device();
            let mut made = made.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if made.as_ref().is_none_or(|(d, _)| !d.same(device)) {
                *made = Some((device.clone(), make(device)?));
            }
            match made.as_ref() {
                Some((_, computation)) => computation(x),
                None => Ok(Vec::new()),
            }
        };
        Case::new(shape, inputs, run).sums(sums)
    }
}
