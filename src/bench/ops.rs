//! Times of ops, forward and backward.

use super::{Candidate, Place, Roof, Rounds, Row, Shape, Timer, Watch, Work, measure};
use crate::check::parity;
use crate::engine::{Computation, OpSpec, Timed, TimedSizes};
use crate::{DType, Device, Format, Result, Stream, Tensor, backward};

/// Default shapes `M x N x K` of dense products.
pub const DEFAULT_SHAPES: [Shape<3>; 2] = [Shape([256, 1024, 1024]), Shape([512, 576, 1536])];

/// Options for timing ops.
pub struct OpsOptions {
    pub ops: Vec<&'static OpSpec>,
    /// `M x N x K` of dense products.
    pub shapes: Vec<Shape<3>>,
    /// Formats of the frozen weight in `fused_ba_matmul`.
    pub formats: Vec<Format>,
    pub forward: bool,
    pub backward: bool,
    pub rounds: Rounds,
    /// Use the host's clock even if the device has timestamps.
    pub wall: bool,
}

/// Compares every computation with the reference and then times it: one row per direction. A wrong computation is not
/// timed, and its row says so. `progress` receives the name of each op.
///
/// # Errors
/// The device failed.
pub fn ops(
    device: &Device,
    options: &OpsOptions,
    roof: Option<&Roof>,
    mut progress: impl FnMut(&str),
) -> Result<Vec<Row>> {
    let place = Place::of(device);
    let timer = Timer::of(device, options.wall)?;
    let products: Vec<[usize; 3]> = options.shapes.iter().map(|shape| shape.0).collect();
    let full = TimedSizes { small: false, products: &products, formats: &options.formats };
    let small = TimedSizes { small: true, ..full };
    let mut rows = Vec::new();
    for op in &options.ops {
        progress(op.name);
        for (small, timed) in (op.timed)(&small).into_iter().zip((op.timed)(&full)) {
            let small = parity(&small.case(), device)?.bounded_for(device);
            let nmse = small.forward.nmse.max(small.backward.nmse);
            let row = |dir: &str, samples: &[f64]| {
                let work = Work {
                    bench: "ops".into(),
                    op: op.name.into(),
                    shape: timed.shape.clone(),
                    dtype: timed.dtype.into(),
                    dir: dir.into(),
                    ..Work::default()
                };
                let row = Row::new(&place, work, timer, samples);
                Row { verified: Some(small.holds()), verified_nmse: Some(nmse), ..row }
            };
            if !small.holds() {
                rows.push(row("", &[]));
                continue;
            }
            let case = Prepared::new(&timed, device)?;
            if options.forward {
                let samples = time(device, timer, options.rounds, Box::new(|w| case.forward(w)))?;
                rows.push(row("fwd", &samples).costs(Some(timed.forward), roof));
            }
            if options.backward && timed.backward.is_some() {
                let samples = time(device, timer, options.rounds, Box::new(|w| case.backward(w)))?;
                rows.push(row("bwd", &samples).costs(timed.backward, roof));
            }
        }
    }
    Ok(rows)
}

fn time(device: &Device, timer: Timer, rounds: Rounds, run: Candidate<'_>) -> Result<Vec<f64>> {
    Ok(measure(device, timer, rounds, &mut [run])?.swap_remove(0))
}

/// A computation on a device, with its inputs and the gradients of its outputs.
struct Prepared {
    inputs: Vec<Tensor>,
    computation: Computation,
    seeds: Vec<Tensor>,
}

impl Prepared {
    fn new(timed: &Timed, device: &Device) -> Result<Self> {
        let inputs = timed.inputs.iter().map(|operand| operand.leaf_on(device));
        let inputs = inputs.collect::<Result<Vec<Tensor>>>()?;
        let computation = (timed.make)(device)?;
        let seeds = computation(&inputs)?
            .iter()
            .filter(|output| output.dtype() == DType::F32)
            .map(|output| {
                let seed = Stream::new(99).normal_vec(output.len(), 1.0);
                Tensor::from_f32(device, output.dims(), &seed)
            })
            .collect::<Result<_>>()?;
        Ok(Prepared { inputs, computation, seeds })
    }

    fn forward(&self, watch: &mut Watch) -> Result<()> {
        let batch = watch.batch();
        watch.time(|| (0..batch).try_for_each(|_| (self.computation)(&self.inputs).map(drop)))
    }

    /// Times backward passes; forward passes come first, each with its own tape.
    fn backward(&self, watch: &mut Watch) -> Result<()> {
        let tapes =
            (0..watch.batch()).map(|_| (self.computation)(&self.inputs)).collect::<Result<Vec<_>>>()?;
        watch.time(|| {
            tapes.into_iter().try_for_each(|outputs| {
                let values = outputs.iter().filter(|output| output.dtype() == DType::F32);
                let roots: Vec<_> = values.zip(self.seeds.iter().cloned()).collect();
                backward(&roots).map(drop)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_is_timed_and_right_at_its_small_size() {
        let formats = [Format::F32, Format::Q4_K];
        let sizes = TimedSizes { small: true, products: &[[33, 40, 65]], formats: &formats };
        for op in crate::ops::ALL {
            let all = (op.timed)(&sizes);
            assert!(!all.is_empty(), "{} has no case to be timed", op.name);
            for timed in all {
                assert!(timed.forward.bytes > 0.0, "{}", op.name);
                let found = parity(&timed.case(), &Device::cpu()).unwrap();
                assert!(found.holds(), "{}: {found}", op.name);
            }
        }
    }
}
