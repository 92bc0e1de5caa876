//! Times of the kernels of a computation, by the clock of the GPU.

use super::{Place, Row, Timer, Work};
use crate::device::Gpu;
use crate::{Device, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Runs a computation once with a timestamp around each launch. Returns a row per kernel whose samples are its
/// launches, the most expensive first, or nothing on a device without timestamps.
pub(super) fn kernels(device: &Device, work: &Work, run: impl FnOnce() -> Result<()>) -> Result<Vec<Row>> {
    let launches = match device {
        Device::Gpu(gpu) if gpu.start_profile()? => profiled(gpu, run)?,
        _ => {
            drop(run);
            BTreeMap::new()
        }
    };
    let place = Place::of(device);
    let row = |(op, seconds): (String, Vec<f64>)| {
        let work = Work { op, dir: String::new(), ..work.clone() };
        let total = seconds.iter().sum::<f64>() * 1e6;
        Row { total_us: Some(total), ..Row::new(&place, work, Timer::GpuTimestamp, &seconds) }
    };
    let mut rows: Vec<Row> = launches.into_iter().map(row).collect();
    rows.sort_by(|one, other| other.total_us.unwrap_or(0.0).total_cmp(&one.total_us.unwrap_or(0.0)));
    Ok(rows)
}

/// Seconds of every launch, by kernel.
fn profiled(gpu: &Arc<Gpu>, run: impl FnOnce() -> Result<()>) -> Result<BTreeMap<String, Vec<f64>>> {
    let done = run();
    let mut launches: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for launch in gpu.take_profile()? {
        let name = format!("{}::{}", launch.shader, launch.entry);
        launches.entry(name).or_default().push(launch.nanoseconds * 1e-9);
    }
    done.map(|()| launches)
}
