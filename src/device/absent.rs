//! Builds without GPUs: the types that stand for one have no values, so that whatever would use them cannot run.

use super::dispatch::Dispatch;
use super::memory::Memory;
use super::options::{AdapterClass, CoopSize, GpuOptions, Tuned};
use super::stats::{KernelTime, Stats};
use crate::{Error, Result};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A GPU; this build has none.
#[derive(Debug)]
pub enum Gpu {}

/// Memory of a GPU.
#[derive(Debug)]
pub(crate) enum GpuBuffer {}

/// Values on their way from a GPU.
#[derive(Debug)]
pub enum Pending {}

impl Pending {
    /// Waits for them.
    ///
    /// # Errors
    /// None: there is no such value.
    pub fn wait(self) -> Result<Vec<u32>> {
        match self {}
    }
}

impl Future for Pending {
    type Output = Result<Vec<u32>>;
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        match *self {}
    }
}

/// Methods that cannot be called.
macro_rules! never {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty;)+) => {
        $($(#[$doc])* #[allow(unused_variables)] $vis fn $name(&self, $($arg: $ty),*) -> $out {
            match *self {}
        })+
    };
}

impl Gpu {
    pub(super) fn best(_: &GpuOptions) -> Result<Arc<Self>> {
        Err(Error::NoAdapter("this build has no GPU support (feature gpu)".into()))
    }
    pub(super) fn named(name: &str, _: &GpuOptions) -> Result<Arc<Self>> {
        Err(Error::NoAdapter(format!("'{name}': this build has no GPU support (feature gpu)")))
    }
    never! {
        pub(super) fn describe() -> [String; 4];
        pub(super) fn again() -> Result<Arc<Gpu>>;
        /// The adapter's name.
        pub fn name() -> &str;
        /// What kind of adapter it is.
        pub fn class() -> AdapterClass;
        /// Bytes of the adapter's own memory.
        pub fn heap_bytes() -> Option<u64>;
        /// Memory accounting.
        pub fn memory() -> &Memory;
        /// Why products do not use cooperative matrices.
        pub fn coop_note() -> Option<String>;
        /// Waits until everything recorded is done.
        pub fn sync() -> Result<()>;
        /// Counters.
        pub fn stats() -> Stats;
        /// Sets the counters to zero.
        pub fn reset_stats() -> ();
        /// Takes timestamps from now on.
        pub fn start_profile() -> Result<bool>;
        /// The launches that were timed.
        pub fn take_profile() -> Result<Vec<KernelTime>>;
        pub(crate) fn largest_binding() -> u64;
        pub(crate) fn alloc(words: usize) -> Result<GpuBuffer>;
        pub(crate) fn dispatch(dispatch: Dispatch<'_>) -> Result<()>;
        pub(crate) fn clear(to: &GpuBuffer) -> Result<()>;
        pub(crate) fn upload(to: &GpuBuffer, data: &[u8]) -> Result<()>;
        pub(crate) fn copy(from: &GpuBuffer, to: &GpuBuffer) -> Result<()>;
        pub(crate) fn read(from: &GpuBuffer) -> Result<Pending>;
        pub(crate) fn coop(test: impl FnOnce(CoopSize) -> Result<()>) -> Option<CoopSize>;
        pub(crate) fn tuned() -> &Tuned;
        pub(crate) fn keep_tuned(table: &Tuned) -> Result<PathBuf>;
        pub(super) fn set_guard(on: bool) -> ();
        pub(super) fn check_guards() -> Result<bool>;
    }
}
