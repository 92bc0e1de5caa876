//! Time, processor time and energy of a piece of work.

use crate::Device;
use std::fs;
use std::time::Instant;

/// Ticks of a second in /proc, on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

/// What runs since a moment.
pub(super) struct Clock {
    began: Instant,
    busy: Option<f64>,
    joules: Option<f64>,
}

/// What a piece of work took.
pub(super) struct Spent {
    pub seconds: f64,
    /// Threads that computed in the mean, where the system tells.
    pub busy: Option<f64>,
    /// Energy of the processors, where the machine counts it.
    pub joules: Option<f64>,
}

impl Clock {
    pub fn start() -> Self {
        Clock { began: Instant::now(), busy: processor_seconds(), joules: joules() }
    }

    pub fn stop(&self) -> Spent {
        let seconds = self.began.elapsed().as_secs_f64();
        let since = |now: Option<f64>, then: Option<f64>| Some(now? - then?);
        // The counter of energy begins anew when it is full.
        let joules = since(joules(), self.joules).filter(|joules| *joules >= 0.0);
        Spent { seconds, busy: since(processor_seconds(), self.busy).map(|busy| busy / seconds), joules }
    }
}

/// Seconds that this process computed, over all threads.
fn processor_seconds() -> Option<f64> {
    let line = fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name of the program, which may hold spaces: fields 14 and 15 of all.
    let mut fields = line.rsplit(')').next()?.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS)
}

/// The counters of all processors together.
fn joules() -> Option<f64> {
    let counters = fs::read_dir("/sys/class/powercap").ok()?;
    let mut sum = None;
    for counter in counters.filter_map(std::result::Result::ok) {
        let name = counter.file_name().to_string_lossy().into_owned();
        // intel-rapl:0 is a processor, intel-rapl:0:1 a part of it.
        if !name.starts_with("intel-rapl:") || name.matches(':').count() != 1 {
            continue;
        }
        let micro = fs::read_to_string(counter.path().join("energy_uj")).ok()?.trim().parse::<f64>().ok()?;
        *sum.get_or_insert(0.0) += micro * 1e-6;
    }
    sum
}

/// What results on the CPU depend on besides its name: the widest vectors that products are computed with.
pub(super) fn instructions(device: &Device) -> &'static str {
    if !matches!(device, Device::Cpu(_)) {
        return "";
    }
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            return ", AVX-512";
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return ", AVX2";
        }
    }
    ""
}
