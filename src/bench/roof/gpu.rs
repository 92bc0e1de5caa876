//! The roof of a GPU.

use super::{Params, ROUNDS, SHADER, VARIANTS};
use crate::bench::{Candidate, Rounds, Timer, Watch, measure as samples};
use crate::device::{Bind, Dispatch, Gpu, Grid, Parameters};
use crate::{Device, Result, Tensor};

/// The number of copied values: 128 MiB, the largest binding that every adapter supports.
const COPIED: usize = 32 << 20;
/// The number of invocations of the multiply-adds, each with eight chains of four values.
const INVOCATIONS: usize = 1 << 20;
/// The smallest time of a sample of multiply-adds, in seconds.
const LONG_ENOUGH: f64 = 0.01;
/// The largest number of links of a chain, so that no launch comes near a watchdog.
const MOST_STEPS: usize = 1 << 16;

type Runs = [(f64, Vec<f64>); 2];

pub(super) fn measure(device: &Device, gpu: &Gpu) -> Result<(Timer, Runs)> {
    let timer = Timer::of(device, false)?;
    let source = Tensor::full(device, &[COPIED], 0.5)?;
    let target = Tensor::zeros(device, &[COPIED])?;
    let launch = |entry, n: usize, steps: usize| {
        gpu.dispatch(Dispatch {
            shader: &SHADER,
            entry,
            consts: VARIANTS[0].consts,
            parts: VARIANTS[0].parts,
            bind: &[Bind::Read(source.buffer()), Bind::Write(target.buffer())],
            params: Params { n: n as u32, steps: steps as u32 }.bytes(),
            grid: Grid::Linear(n.div_ceil(256)),
            flops: (64 * n * steps) as u64,
        })
    };
    let timed = |entry: &'static str, n: usize, steps: usize, rounds: usize| -> Result<Vec<f64>> {
        let run: Candidate<'_> = Box::new(|watch: &mut Watch| {
            let batch = watch.batch();
            watch.time(|| (0..batch).try_for_each(|_| launch(entry, n, steps)))
        });
        let rounds = Rounds { rounds, min_seconds: 0.0, sample_seconds: LONG_ENOUGH };
        Ok(samples(device, timer, rounds, &mut [run])?.swap_remove(0))
    };
    let vectors = COPIED / 4;
    let copy = timed("copy", vectors, 0, ROUNDS)?;
    let mut steps = 16;
    while steps < MOST_STEPS && timed("fused", INVOCATIONS, steps, 1)?[0] < LONG_ENOUGH {
        steps *= 2;
    }
    let fused = timed("fused", INVOCATIONS, steps, ROUNDS)?;
    let flops = (64 * INVOCATIONS * steps) as f64;
    Ok((timer, [(8.0 * COPIED as f64, copy), (flops, fused)]))
}
