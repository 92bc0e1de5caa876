//! GPU buffers: reuse, the byte budget, and guard mode.

use super::gpu::Gpu;
use super::lock;
use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

const GUARD_WORDS: u64 = 64;
const GUARD: u32 = 0xdead_beef;
const POISON: u32 = 0x7fc0_dead; // a NaN
const USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

/// A buffer of 32-bit words on the GPU. Dropping it returns it to the pool: commands run in the order
/// they are recorded, so a later user cannot disturb an earlier one.
pub(crate) struct GpuBuffer {
    pub(super) raw: wgpu::Buffer,
    /// Bytes used, a multiple of 4.
    pub(super) bytes: u64,
    home: Arc<Gpu>,
    guard: bool,
}

/// One vector of four: the least that a kernel which loads vectors accepts.
const LEAST_BINDING: u64 = 16;

impl GpuBuffer {
    /// What kernels see: in guard mode the sentinel too, so that a stray write is not clipped away.
    pub(super) fn binding(&self) -> wgpu::BindingResource<'_> {
        self.range(if self.guard { self.raw.size() } else { self.bytes.max(LEAST_BINDING) })
    }
    /// The smallest binding, for a kernel that does not look at it.
    pub(super) fn least(&self) -> wgpu::BindingResource<'_> {
        self.range(LEAST_BINDING)
    }
    fn range(&self, bytes: u64) -> wgpu::BindingResource<'_> {
        let size = wgpu::BufferSize::new(bytes);
        wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: &self.raw, offset: 0, size })
    }
}

impl Drop for GpuBuffer {
    fn drop(&mut self) {
        let size = self.raw.size();
        self.home.memory.give_back(size);
        if self.guard {
            self.home.memory.release(size);
        } else if let Ok(mut free) = self.home.pool.free.lock() {
            free.entry(size).or_default().push(self.raw.clone());
        }
    }
}

/// Bytes that a buffer of `bytes` takes: steps of 1/8, multiples of 256.
fn class(bytes: u64) -> u64 {
    let step = (bytes.max(1).next_power_of_two() / 16).max(256);
    bytes.max(1).div_ceil(step) * step
}

impl Gpu {
    /// A buffer for `words` 32-bit words, its content undefined.
    pub(crate) fn alloc(self: &Arc<Self>, words: usize) -> Result<GpuBuffer> {
        self.check()?;
        let bytes = 4 * words as u64;
        let guard = self.guard.load(Relaxed);
        let size = class(bytes) + if guard { 4 * GUARD_WORDS } else { 0 };
        let limit = self.largest_binding();
        if bytes > limit {
            let expected = format!("at most {limit} bytes, which one binding of this adapter holds");
            let found = format!("{bytes}; use a smaller batch or sequence, or split by rows");
            return Err(Error::shape("tensor", expected, found));
        }
        let size = if size > limit { bytes } else { size };
        let found = if guard { None } else { lock(&self.pool.free).get_mut(&size).and_then(Vec::pop) };
        let raw = match found {
            Some(b) => b,
            None => self.create(size, bytes, guard)?,
        };
        self.memory.acquire(size);
        Ok(GpuBuffer { raw, bytes, home: self.clone(), guard })
    }

    fn create(&self, size: u64, bytes: u64, guard: bool) -> Result<wgpu::Buffer> {
        if self.memory.reserve(size).is_err() {
            self.trim();
            self.memory.reserve(size)?;
        }
        let made = self.scoped(|| {
            let raw = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage: USAGE,
                mapped_at_creation: guard,
            });
            if guard && let Ok(mut view) = raw.get_mapped_range_mut(..) {
                let words = (0..size / 4).map(|i| if 4 * i < bytes { POISON } else { GUARD });
                view.copy_from_slice(bytemuck::cast_slice(&words.collect::<Vec<u32>>()));
                drop(view);
                raw.unmap();
            }
            raw
        });
        match made {
            Ok(raw) => {
                if guard {
                    lock(&self.pool.guarded).push((raw.clone(), bytes));
                }
                Ok(raw)
            }
            Err(e) => {
                self.memory.release(size);
                Err(match e {
                    Error::OutOfMemory { .. } => self.memory.out_of_memory(size),
                    e => e,
                })
            }
        }
    }

    /// Frees the buffers kept for reuse.
    pub fn trim(&self) {
        for (size, list) in lock(&self.pool.free).drain() {
            self.memory.release(size * list.len() as u64);
        }
    }

    pub(super) fn set_guard(&self, on: bool) {
        self.trim();
        self.guard.store(on, Relaxed);
    }

    pub(super) fn check_guards(self: &Arc<Self>) -> Result<bool> {
        let list = std::mem::take(&mut *lock(&self.pool.guarded));
        let mut good = true;
        for (raw, bytes) in list {
            let words = self.read_words(&raw, raw.size())?.wait()?;
            good &= words[(bytes / 4) as usize..].iter().all(|&w| w == GUARD);
        }
        Ok(good)
    }
}
