//! The byte budget of a device.

use crate::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes that a device holds. Current counts live tensors, held adds buffers kept for reuse.
#[derive(Debug)]
pub struct Memory {
    live: AtomicU64,
    held: AtomicU64,
    peak: AtomicU64,
    budget: AtomicU64,
}

impl Default for Memory {
    fn default() -> Self {
        Memory { live: 0.into(), held: 0.into(), peak: 0.into(), budget: u64::MAX.into() }
    }
}

impl Memory {
    /// Bytes of live buffers.
    pub fn current(&self) -> u64 {
        self.live.load(Relaxed)
    }
    /// Bytes held from the driver or allocator, reusable buffers included.
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }
    /// Largest value of [`current`](Memory::current) since the start or the last reset.
    pub fn peak(&self) -> u64 {
        self.peak.load(Relaxed)
    }
    /// Starts a new peak measurement at the current value.
    pub fn reset_peak(&self) {
        self.peak.store(self.current(), Relaxed);
    }
    /// The budget in bytes.
    pub fn budget(&self) -> u64 {
        self.budget.load(Relaxed)
    }
    /// Sets the budget in bytes: a new buffer that would take the held bytes beyond it is refused.
    pub fn set_budget(&self, bytes: u64) {
        self.budget.store(bytes, Relaxed);
    }
    pub(crate) fn out_of_memory(&self, requested: u64) -> Error {
        Error::OutOfMemory { requested, in_use: self.current(), budget: self.budget() }
    }
    /// Reserves bytes for a new buffer; the caller trims its reuse lists and tries again on an error.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<()> {
        self.held
            .fetch_update(Relaxed, Relaxed, |h| {
                h.checked_add(bytes).filter(|&n| n <= self.budget.load(Relaxed))
            })
            .map(|_| ())
            .map_err(|_| self.out_of_memory(bytes))
    }
    pub(crate) fn release(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Relaxed);
    }
    pub(crate) fn acquire(&self, bytes: u64) {
        let now = self.live.fetch_add(bytes, Relaxed) + bytes;
        self.peak.fetch_max(now, Relaxed);
    }
    pub(crate) fn give_back(&self, bytes: u64) {
        self.live.fetch_sub(bytes, Relaxed);
    }
}
