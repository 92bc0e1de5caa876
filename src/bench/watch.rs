//! Measurement of times: batched launches with one wait, or timestamps of the device, in interleaved rounds.

use super::Summary;
use crate::{Device, Result};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The largest number of repetitions in a sample; each may hold memory until the sample ends.
const MAX_BATCH: usize = 64;
/// The number of runs before the first sample, which compile pipelines and fill caches.
const WARM_UP: usize = 3;

/// The clock of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timer {
    /// The host's clock around calls that end when they return.
    Wall,
    /// The host's clock around a batch of launches and one wait for the last.
    WallBatch,
    /// The sum of the device's times of all kernels, without the gaps between them.
    GpuTimestamp,
}

impl Timer {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Timer::Wall => "wall",
            Timer::WallBatch => "wall-batch",
            Timer::GpuTimestamp => "gpu-timestamp",
        }
    }

    /// The best timer for kernels on this device; with `wall`, always the host's clock.
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

/// The stopwatch of a candidate, which prepares its work and runs the timed part inside [`Watch::time`].
pub struct Watch {
    device: Device,
    timer: Timer,
    batch: usize,
    seconds: f64,
}

impl Watch {
    /// The number of repetitions of the timed work.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Times `work`, which makes `batch` repetitions; the device is idle before and after.
    ///
    /// # Errors
    /// `work` or the device fails.
    pub fn time(&mut self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.device.sync()?;
        let total = match &self.device {
            Device::Gpu(gpu) if self.timer == Timer::GpuTimestamp => {
                gpu.start_profile()?;
                let done = work();
                let launches = gpu.take_profile()?;
                done?;
                launches.iter().map(|launch| launch.nanoseconds).sum::<f64>() * 1e-9
            }
            _ => {
                let started = Instant::now();
                work()?;
                self.device.sync()?;
                started.elapsed().as_secs_f64()
            }
        };
        self.seconds = total / self.batch as f64;
        Ok(())
    }
}

/// A function to time. It is called once per sample and calls [`Watch::time`] once.
pub type Candidate<'a> = Box<dyn FnMut(&mut Watch) -> Result<()> + 'a>;

/// The duration of a measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rounds {
    /// The smallest number of samples of each candidate.
    pub rounds: usize,
    /// The smallest time of all samples of a candidate in seconds, within [`Rounds::MOST`] rounds.
    pub min_seconds: f64,
    /// Repetitions are batched until a sample takes this long.
    pub sample_seconds: f64,
}

impl Rounds {
    /// The largest number of samples.
    pub const MOST: usize = 1000;

    /// Rounds in which one call is one sample, for long steps.
    pub fn single(rounds: usize) -> Self {
        Rounds { rounds, min_seconds: 0.0, sample_seconds: 0.0 }
    }
}

/// Measures samples in seconds of every candidate; samples with the same index are of the same round.
///
/// # Errors
/// A candidate or the device fails.
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
    let count = candidates.len();
    let mut samples = vec![Vec::new(); count];
    let enough = Duration::from_secs_f64(rounds.min_seconds * count as f64);
    let started = Instant::now();
    for round in 0..Rounds::MOST.max(rounds.rounds) {
        if round >= rounds.rounds.max(1) && started.elapsed() >= enough {
            break;
        }
        for place in 0..count {
            let at = (place + round) % count;
            watch.batch = batches[at];
            candidates[at](&mut watch)?;
            samples[at].push(watch.seconds);
        }
    }
    Ok(samples)
}

/// Summarises the samples of one candidate in microseconds.
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
            Box::new(move |watch: &mut Watch| {
                order.borrow_mut().push(name);
                watch.time(|| Ok(()))
            })
        };
        let mut all = vec![candidate(0), candidate(1), candidate(2)];
        let samples = measure(&Device::cpu(), Timer::Wall, Rounds::single(3), &mut all).unwrap();
        assert!(samples.iter().all(|samples| samples.len() == 3));
        drop(all);
        assert_eq!(order.into_inner(), [0, 1, 2, 0, 1, 2, 1, 2, 0, 2, 0, 1]);
    }

    #[test]
    fn short_work_is_batched() {
        let mut seen = 0;
        let rounds = Rounds { rounds: 2, min_seconds: 0.0, sample_seconds: 1.0 };
        let mut all: Vec<Candidate<'_>> = vec![Box::new(|watch: &mut Watch| {
            seen = watch.batch();
            watch.time(|| Ok(()))
        })];
        measure(&Device::cpu(), Timer::Wall, rounds, &mut all).unwrap();
        drop(all);
        assert_eq!(seen, MAX_BATCH);
    }
}
