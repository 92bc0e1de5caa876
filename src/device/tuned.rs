//! Kernels that were measured best: shape class to kernel, in one file per adapter, driver and version.

use super::kept::{self, file_name};
use super::options::{AdapterClass, Tuned};
use crate::Result;
use std::path::{Path, PathBuf};

/// Larger files are none.
const MAX_BYTES: u64 = 64 << 10;

/// Where the table of an adapter is kept.
pub(super) fn path(folder: &Path, info: &wgpu::AdapterInfo) -> PathBuf {
    folder.join("tuned").join(file_name(info)).with_extension("json")
}

/// The table of a hardware adapter. A file that is damaged counts as none; software adapters have none.
pub(super) fn read(path: &Path, info: &wgpu::AdapterInfo) -> Tuned {
    let file = std::fs::metadata(path).ok().filter(|m| m.len() <= MAX_BYTES);
    let text = file.filter(|_| AdapterClass::of(info) != AdapterClass::Software);
    let text = text.and_then(|_| std::fs::read(path).ok());
    text.and_then(|t| serde_json::from_slice(&t).ok()).unwrap_or_default()
}

/// Writes a table, and gives back its file.
pub(super) fn write(path: &Path, table: &Tuned) -> Result<PathBuf> {
    let text = serde_json::to_string_pretty(table).unwrap_or_default();
    kept::write(path, text.as_bytes())?;
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::device::GpuOptions;

    #[test]
    fn a_table_is_read_back_on_hardware_alone() {
        let dir = tempfile::tempdir().unwrap();
        let options = GpuOptions { cache: Some(dir.path().into()), ..GpuOptions::from_env() };
        let Ok(Device::Gpu(gpu)) = Device::gpu_with(&options) else {
            return eprintln!("SKIPPED: no adapter");
        };
        let table = Tuned::from([("wide".to_string(), "tile n64".to_string())]);
        let path = gpu.keep_tuned(&table).unwrap();
        let as_a = |device_type| wgpu::AdapterInfo { device_type, ..gpu.info().clone() };
        assert_eq!(read(&path, &as_a(wgpu::DeviceType::DiscreteGpu)), table);
        assert_eq!(read(&path, &as_a(wgpu::DeviceType::Cpu)), Tuned::new());
        for bad in [&b"{\"wide\": 3}"[..], b"{", &[b' '; 100_000]] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(read(&path, &as_a(wgpu::DeviceType::DiscreteGpu)), Tuned::new());
        }
        let Ok(Device::Gpu(other)) = Device::gpu_with(&GpuOptions::from_env()) else { unreachable!() };
        assert!(other.keep_tuned(&table).is_err(), "no folder");
    }
}
