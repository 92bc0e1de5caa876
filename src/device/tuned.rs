//! Kernels that were measured best: shape class to kernel, in one file per adapter, driver and version.

use super::gpu::{AdapterClass, Gpu};
use super::kept::{file_name, write};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Names of shape classes, and of the kernels to use for them.
pub(crate) type Tuned = BTreeMap<String, String>;

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

impl Gpu {
    /// The measured choice of kernels; empty where nothing was measured.
    pub(crate) fn tuned(&self) -> &Tuned {
        &self.tuned
    }

    /// Keeps a table for devices that are opened later.
    ///
    /// # Errors
    /// The device was opened without a folder, or the folder cannot be written.
    pub(crate) fn keep_tuned(&self, table: &Tuned) -> Result<PathBuf> {
        let folder = self.cache.as_deref();
        let folder =
            folder.ok_or_else(|| Error::config("cache", "the device was opened without a folder"))?;
        let path = path(folder, &self.info);
        let text = serde_json::to_string_pretty(table).unwrap_or_default();
        write(&path, text.as_bytes()).map_err(|e| Error::file(&path, format!("cannot be written: {e}")))?;
        Ok(path)
    }
}
