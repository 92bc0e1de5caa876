//! Where, when and with what something was computed.

use super::Device;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time since 1970-01-01 UTC; none on a clock that is set before it.
pub(crate) fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Where and with what something was measured: the same in every row of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// That the crate was built from: the variable `MIXLORA_COMMIT`, else that of its repository or package, else
    /// `unknown`.
    pub commit: String,
    pub crate_version: String,
    /// Seconds since 1970-01-01 UTC.
    pub date: u64,
    pub os: String,
    /// `cpu`, or the graphics API.
    pub backend: String,
    /// The adapter's or the processor's name.
    pub adapter: String,
    /// The driver with its version; the number of threads on a CPU.
    pub driver: String,
    /// `cpu`, or what kind of GPU it is.
    pub device_type: String,
}

impl Place {
    /// This crate on this device, now.
    pub fn of(device: &Device) -> Self {
        let [backend, adapter, driver, device_type] = describe(device);
        Place {
            commit: env!("MIXLORA_COMMIT").into(),
            crate_version: env!("CARGO_PKG_VERSION").into(),
            date: unix_time().as_secs(),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            backend,
            adapter,
            driver,
            device_type,
        }
    }
}

/// Backend, name, driver and kind of a device.
fn describe(device: &Device) -> [String; 4] {
    match device {
        Device::Gpu(gpu) => gpu.describe(),
        Device::Cpu(c) => {
            let threads = c.threads();
            ["cpu".into(), processor(), format!("{threads} threads"), "cpu".into()]
        }
        Device::Reference => ["reference".into(), processor(), "1 thread".into(), "cpu".into()],
    }
}

/// The processor's name where the system tells it, else its architecture.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    name.map_or(std::env::consts::ARCH.to_string(), |(_, n)| n.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_in_a_repository_knows_its_commit() {
        let place = Place::of(&Device::cpu());
        let in_repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".git").exists();
        assert!(!in_repository || place.commit != "unknown");
        assert!(place.date > 1_700_000_000 && place.driver.ends_with("threads"));
    }
}
