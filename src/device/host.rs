//! Buffers in host memory: the CPU device and its reuse pool, and the plain vectors of the reference device.

use super::arena::{Arena, Piece};
use super::lock;
use super::memory::Memory;
use crate::Result;
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// Elements behind every buffer that guard mode checks.
const GUARD: usize = 64;
const GUARD_BITS: u32 = 0xdead_beef;
const POISON_BITS: u32 = 0x7fc0_dead; // a NaN

/// The CPU device: rayon threads, a pool of reusable buffers, a byte budget.
#[derive(Debug, Default)]
pub struct Cpu {
    pub(crate) memory: Memory,
    pub(crate) threads: Option<rayon::ThreadPool>,
    arena: Mutex<Arena>,
    free: Mutex<HashMap<usize, Vec<Piece>>>,
    pub(crate) guard: AtomicBool,
    broken: AtomicBool,
    pub(crate) shapes_only: bool,
}

impl Cpu {
    pub(crate) fn with_threads(pool: rayon::ThreadPool) -> Self {
        Cpu { threads: Some(pool), ..Cpu::default() }
    }

    /// Buffers of no length, whatever is asked for.
    pub(crate) fn shapes_only() -> Self {
        Cpu { shapes_only: true, ..Cpu::default() }
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        self.install(rayon::current_num_threads)
    }

    /// Runs on this device's threads (rayon's global pool unless a thread count was given).
    pub(crate) fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.threads {
            Some(pool) => pool.install(f),
            None => f(),
        }
    }

    /// Elements that a buffer of `len` elements takes: steps of 1/8, so that close sizes share buffers.
    fn class(len: usize) -> usize {
        let len = len.max(16);
        let step = (len.next_power_of_two() / 16).max(16);
        len.div_ceil(step) * step
    }

    /// Like [`install`](Cpu::install), and on one of rayon's own threads where no thread count was given.
    pub(crate) fn inside<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match (&self.threads, rayon::current_thread_index()) {
            (Some(pool), _) => pool.install(f),
            (None, Some(_)) => f(),
            (None, None) => rayon::scope(|_| f()),
        }
    }

    fn take(self: &Arc<Self>, len: usize) -> Result<Words> {
        if self.shapes_only {
            return Ok(Words { words: Piece::default(), len: 0, guard: false, home: self.clone() });
        }
        let guard = self.guard.load(Relaxed);
        let cap = Self::class(len) + if guard { GUARD } else { 0 };
        let bytes = 4 * cap as u64;
        let found = lock(&self.free).get_mut(&cap).and_then(Vec::pop);
        let mut words = match found {
            Some(w) => w,
            None => {
                if self.memory.reserve(bytes).is_err() {
                    self.trim();
                    self.memory.reserve(bytes)?;
                }
                let piece = lock(&self.arena).piece(cap);
                piece.map_err(|_| {
                    self.memory.release(bytes);
                    self.memory.out_of_memory(bytes)
                })?
            }
        };
        self.memory.acquire(bytes);
        if guard {
            words.fill(POISON_BITS);
            words[len..].fill(GUARD_BITS);
        }
        Ok(Words { words, len, guard, home: self.clone() })
    }

    /// Frees the buffers kept for reuse.
    pub fn trim(&self) {
        for (cap, list) in lock(&self.free).drain() {
            self.memory.release(4 * (cap * list.len()) as u64);
        }
    }

    /// True when a kernel wrote behind a buffer since the last call (guard mode only).
    pub(crate) fn take_broken(&self) -> bool {
        self.broken.swap(false, Relaxed)
    }
}

/// A pooled buffer of 32-bit words, seen as `f32` or `u32`.
#[derive(Debug)]
pub struct Words {
    words: Piece,
    len: usize,
    guard: bool,
    home: Arc<Cpu>,
}

impl Drop for Words {
    fn drop(&mut self) {
        let cap = self.words.len();
        if self.guard && self.words[self.len..].iter().any(|&w| w != GUARD_BITS) {
            self.home.broken.store(true, Relaxed);
        }
        self.home.memory.give_back(4 * cap as u64);
        let words = std::mem::take(&mut self.words);
        if let Ok(mut free) = self.home.free.lock() {
            free.entry(cap).or_default().push(words);
        }
    }
}

/// Pooled `f32` values.
#[derive(Debug)]
pub struct F32s(Words);
/// Pooled `u32` values.
#[derive(Debug)]
pub struct U32s(Words);

impl Deref for F32s {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0.words[..self.0.len])
    }
}
impl DerefMut for F32s {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0.words[..self.0.len])
    }
}
impl Deref for U32s {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        &self.0.words[..self.0.len]
    }
}
impl DerefMut for U32s {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut self.0.words[..self.0.len]
    }
}

/// A buffer in host memory, as the reference and CPU back ends of an op see their outputs.
///
/// The accessors panic on the wrong type: an op's `infer` fixes the types before a lane runs.
#[derive(Debug)]
pub enum Host {
    /// Values of the reference device.
    F64(Vec<f64>),
    /// Values of the CPU device.
    F32(F32s),
    /// Indices of the CPU device.
    U32(U32s),
    /// Indices of the reference device.
    RefU32(Vec<u32>),
}

impl Host {
    pub(crate) fn f32s(cpu: &Arc<Cpu>, len: usize) -> Result<Host> {
        Ok(Host::F32(F32s(cpu.take(len)?)))
    }
    pub(crate) fn u32s(cpu: &Arc<Cpu>, len: usize) -> Result<Host> {
        Ok(Host::U32(U32s(cpu.take(len)?)))
    }
    /// Values of the reference device.
    pub fn f64(&self) -> &[f64] {
        match self {
            Host::F64(v) => v,
            _ => unreachable!("reference values"),
        }
    }
    /// Values of the CPU device.
    pub fn f32(&self) -> &[f32] {
        match self {
            Host::F32(v) => v,
            _ => unreachable!("cpu values"),
        }
    }
    /// Indices.
    pub fn u32(&self) -> &[u32] {
        match self {
            Host::U32(v) => v,
            Host::RefU32(v) => v,
            _ => unreachable!("indices"),
        }
    }
    /// Values of the reference device, to write.
    pub fn f64_mut(&mut self) -> &mut [f64] {
        match self {
            Host::F64(v) => v,
            _ => unreachable!("reference values"),
        }
    }
    /// Values of the CPU device, to write.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        match self {
            Host::F32(v) => v,
            _ => unreachable!("cpu values"),
        }
    }
    /// Indices, to write.
    pub fn u32_mut(&mut self) -> &mut [u32] {
        match self {
            Host::U32(v) => v,
            Host::RefU32(v) => v,
            _ => unreachable!("indices"),
        }
    }
}
