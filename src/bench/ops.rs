//! Times of ops, forward and backward.

use super::cases::{self, Timed};
use super::{Candidate, Place, Roof, Rounds, Row, Shape, Timer, Watch, Work, measure};
use crate::check::parity;
use crate::ops::OpSpec;
use crate::{DType, Device, Format, Result, Stream, Tensor, backward};

/// Which ops are timed, and how.
pub struct OpsOptions {
    pub ops: Vec<&'static OpSpec>,
    /// `M x N x K` of dense products.
    pub shapes: Vec<Shape<3>>,
    /// Formats of the frozen weight in `fused_ba_matmul`.
    pub formats: Vec<Format>,
    pub forward: bool,
    pub backward: bool,
    pub rounds: Rounds,
    /// The host's clock, also where the device has timestamps.
    pub wall: bool,
}

/// Checks every computation against the reference and then times it: one row for each direction. One that is wrong is
/// not timed: its row says so. `progress` hears the name of each op.
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
    let mut rows = Vec::new();
    for op in &options.ops {
        progress(op.name);
        for build in cases::of(op.name, &options.shapes, &options.formats) {
            let small = parity(&build(true).case(), device)?.bounded_for(device);
            let timed = build(false);
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
    computation: cases::Computation,
    seeds: Vec<Tensor>,
}

impl Prepared {
    fn new(timed: &Timed, device: &Device) -> Result<Self> {
        let input =
            |o: &crate::ops::Operand| Ok(if o.has_grad() { o.on(device)?.leaf() } else { o.on(device)? });
        let inputs = timed.inputs.iter().map(input).collect::<Result<Vec<Tensor>>>()?;
        let computation = (timed.make)(device)?;
        let seeds = computation(&inputs)?
            .iter()
            .filter(|t| t.dtype() == DType::F32)
            .map(|t| Tensor::from_f32(device, t.dims(), &Stream::new(99).normal_vec(t.len(), 1.0)))
            .collect::<Result<_>>()?;
        Ok(Prepared { inputs, computation, seeds })
    }

    fn forward(&self, watch: &mut Watch) -> Result<()> {
        let n = watch.batch();
        watch.time(|| (0..n).try_for_each(|_| (self.computation)(&self.inputs).map(drop)))
    }

    /// Forward passes come first, each with a tape of its own.
    fn backward(&self, watch: &mut Watch) -> Result<()> {
        let tapes =
            (0..watch.batch()).map(|_| (self.computation)(&self.inputs)).collect::<Result<Vec<_>>>()?;
        watch.time(|| {
            tapes.into_iter().try_for_each(|y| {
                let values = y.iter().filter(|t| t.dtype() == DType::F32);
                let roots: Vec<_> = values.zip(self.seeds.iter().cloned()).collect();
                backward(&roots).map(drop)
            })
        })
    }
}
