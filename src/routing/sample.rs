//! Made-up choices, for what is timed of ops.

use super::{Selection, Units};
use crate::rng::Stream;
use crate::{Device, Result, Tensor};

/// `k` different choices of `factors` for each of `units`.
pub(crate) fn picks(units: usize, k: usize, factors: usize) -> Vec<u32> {
    let pick = Stream::new(3).named("picks");
    let of_unit = |unit: usize| {
        let start = pick.bits(unit as u32) as usize;
        (0..k).map(move |i| ((start % factors + i * 7) % factors) as u32)
    };
    (0..units).flat_map(of_unit).collect()
}

/// Tokens that choose `k` of `factors` each, of one linear, as made by [`picks`].
pub(crate) fn tokens(
    device: &Device,
    [rows, factors, k]: [usize; 3],
    gates: Option<&Tensor>,
) -> Result<Selection> {
    let idx = Tensor::from_u32(device, &[1, 1, rows, k], &picks(rows, k, factors))?;
    Selection::new(idx, gates.cloned(), &Units::tokens(rows), factors, 1)
}

/// Rows, width, factors and choices at which the parts of a mixture are timed.
pub(crate) const SMALL: [usize; 4] = [40, 96, 16, 4];
pub(crate) const FULL: [usize; 4] = [1024, 1024, 64, 8];
