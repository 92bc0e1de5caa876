//! How time is taken: launches in a batch with one wait, or the device's own timestamps, in interleaved rounds.

use super::Summary;
use crate::{Device, Result};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Repetitions in one sample at most; each may hold memory until the sample ends.
const MAX_BATCH: usize = 64;
/// Runs before the first sample: pipelines are built, caches and pools are filled.
const WARM_UP: usize = 3;

/// What a time is taken with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timer {
    /// The host's clock around calls that end when they return.
    Wall,
    /// The host's clock around a batch of launches and one wait for the last.
    WallBatch,
    /// The sum of the device's own times of all kernels; what lies between them is left out.
    GpuTimestamp,
}

impl Timer {
    /// As it is written in files.
    pub const fn name(self) -> &'static str {
        match self {
            Timer::Wall => "wall",
            Timer::WallBatch => "wall-batch",
            Timer::GpuTimestamp => "gpu-timestamp",
        }
    }

    /// The best timer for kernels on this device; with `wall`, the host's clock in any case.
    ///
    /// # Errors
    /// The device failed.
    pub fn of(device: &Device, wall: bool) -> Result<Self> {
        match device {
            Device::Gpu(gpu) => {
                let stamps = !wall && gpu.start_profile()?;
                gpu.take_profile()?;
                Ok(if stamps { Timer::GpuTimestamp } else { Timer::WallBatch })
            }
            _ => {
                let _ = wall;
                Ok(Timer::Wall)
            }
        }
    }
}

/// What a candidate tells its time with: it prepares as it likes, and runs what is timed inside [`Watch::time`].
pub struct Watch {
    device: Device,
    timer: Timer,
    batch: usize,
    seconds: f64,
}

impl Watch {
    /// How often to repeat what is timed.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Times `batch` repetitions that `f` makes; the device is idle before and after.
    ///
    /// # Errors
    /// Those of `f`, or the device failed.
    pub fn time(&mut self, f: impl FnOnce() -> Result<()>) -> Result<()> {
        self.device.sync()?;
        let total = match &self.device {
            Device::Gpu(gpu) if self.timer == Timer::GpuTimestamp => {
                gpu.start_profile()?;
                let done = f();
                let launches = gpu.take_profile()?;
                done?;
                launches.iter().map(|l| l.nanoseconds).sum::<f64>() * 1e-9
            }
            _ => {
                let started = Instant::now();
                f()?;
                self.device.sync()?;
                started.elapsed().as_secs_f64()
            }
        };
        self.seconds = total / self.batch as f64;
        Ok(())
    }
}

/// Something to be timed. It is called once per sample and calls [`Watch::time`] once.
pub type Candidate<'a> = Box<dyn FnMut(&mut Watch) -> Result<()> + 'a>;

/// How long to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rounds {
    /// Samples of each candidate at least.
    pub rounds: usize,
    /// Seconds of samples of each candidate at least, within [`Rounds::MOST`] rounds.
    pub min_seconds: f64,
    /// Repetitions are batched until a sample takes this long.
    pub sample_seconds: f64,
}

impl Rounds {
    /// No more samples than this.
    pub const MOST: usize = 1000;

    /// One call is one sample: for steps that are long by themselves.
    pub fn single(rounds: usize) -> Self {
        Rounds { rounds, min_seconds: 0.0, sample_seconds: 0.0 }
    }
}

/// Samples in seconds of every candidate, by round: sample `i` of all of them was taken in the same round.
///
/// # Errors
/// Those of the candidates.
pub fn measure(
    device: &Device,
    timer: Timer,
    rounds: Rounds,
    candidates: &mut [Candidate<'_>],
) -> Result<Vec<Vec<f64>>> {
    let mut watch = Watch { device: device.clone(), timer, batch: 1, seconds: 0.0 };
    let mut batches = Vec::with_capacity(candidates.len());
    for run in candidates.iter_mut() {
        watch.batch = 1;
        let mut best = f64::MAX;
        let warm_up = if rounds.sample_seconds > 0.0 { WARM_UP } else { 1 };
        for _ in 0..warm_up {
            run(&mut watch)?;
            best = best.min(watch.seconds);
        }
        let wanted = rounds.sample_seconds / best.max(1e-9);
        batches.push((wanted.ceil() as usize).clamp(1, MAX_BATCH));
    }
    let n = candidates.len();
    let mut samples = vec![Vec::new(); n];
    let enough = Duration::from_secs_f64(rounds.min_seconds * n as f64);
    let started = Instant::now();
    for round in 0..Rounds::MOST.max(rounds.rounds) {
        if round >= rounds.rounds.max(1) && started.elapsed() >= enough {
            break;
        }
        for i in 0..n {
            let at = (i + round) % n;
            watch.batch = batches[at];
            candidates[at](&mut watch)?;
            samples[at].push(watch.seconds);
        }
    }
    Ok(samples)
}

/// The samples of one candidate, summed up in microseconds.
pub(super) fn micros(samples: &[f64]) -> Summary {
    Summary::of(samples).times(1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn candidates_take_turns_and_the_order_moves_on() {
        let order = RefCell::new(Vec::new());
        let candidate = |name: usize| -> Candidate<'_> {
            let order = &order;
            Box::new(move |w: &mut Watch| {
                order.borrow_mut().push(name);
                w.time(|| Ok(()))
            })
        };
        let mut all = vec![candidate(0), candidate(1), candidate(2)];
        let samples = measure(&Device::cpu(), Timer::Wall, Rounds::single(3), &mut all).unwrap();
        assert!(samples.iter().all(|s| s.len() == 3));
        drop(all);
        assert_eq!(order.into_inner(), [0, 1, 2, 0, 1, 2, 1, 2, 0, 2, 0, 1]);
    }

    #[test]
    fn short_work_is_batched() {
        let mut seen = 0;
        let rounds = Rounds { rounds: 2, min_seconds: 0.0, sample_seconds: 1.0 };
        let mut all: Vec<Candidate<'_>> = vec![Box::new(|w: &mut Watch| {
            seen = w.batch();
            w.time(|| Ok(()))
        })];
        measure(&Device::cpu(), Timer::Wall, rounds, &mut all).unwrap();
        drop(all);
        assert_eq!(seen, MAX_BATCH);
    }
}
